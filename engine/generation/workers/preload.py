"""What a fork server imports before it forks workers."""

import contextlib
import os
import pkgutil
from collections.abc import Iterable, Iterator

from engine.config.augment import SCHEDULERS
from engine.config.recipe import Recipe

ALWAYS = ("engine.generation.workers.worker", "export.onnx", "PIL.Image", "pyarrow.parquet", "pandas")
"""pyarrow imports pandas when it creates its first array."""
PRIOR = (
    "diffusers:AutoencoderKL",
    "diffusers:DDIMScheduler",
    "diffusers:UNet2DConditionModel",
    "transformers:CLIPImageProcessor",
    "transformers:CLIPVisionConfig",
    "transformers:CLIPVisionModelWithProjection",
)
ZOOS = {"timm:": "timm", "torchvision:": "torchvision.models"}
"""Modules that teachers and students come from, by the prefix of their names."""
QUIET = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""Environment variables that keep pyarrow and numpy from starting threads on import, and torch from
initialising CUDA to count GPUs (it asks NVML instead)."""


def names_for(recipe: Recipe, url: str) -> list[str]:
    """Return what a worker of the bank at `url` imports, as names for `pkgutil.resolve_name`.

    openvino and onnxruntime are left out because they start a thread on import; each worker imports them
    itself in less than 0.1 s. A user's Python factory is left out because its import may do anything.
    """
    names = [*ALWAYS]
    if recipe.augment.method == "variation":
        names += [*PRIOR, f"diffusers:{SCHEDULERS[recipe.augment.scheduler][0]}"]
    if recipe.uses_clip:
        names.append("open_clip")
    for classifier in (recipe.teacher, recipe.student):
        names += [module for start, module in ZOOS.items() if classifier.name.startswith(start)]
    if url.startswith("s3:"):
        names.append("s3fs")
    return names


def preload(names: Iterable[str]) -> None:
    """Import all names. Ignore failures: the worker repeats the import and reports the error."""
    with _environment(QUIET):
        for name in names:
            with contextlib.suppress(Exception):
                pkgutil.resolve_name(name)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables inside the block and restore them afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
