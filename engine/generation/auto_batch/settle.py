"""Replace every `micro_batch: auto` of a recipe by a measured number, cached in the folder of engines."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.config.recipe import Recipe, with_default_batches
from engine.generation.auto_batch.measure import HostMemory, Reading, Timing, best, candidates
from engine.generation.overlap import lanes, thread_counts
from engine.generation.provenance import weights_of
from export.disk import full_disk

logger = logging.getLogger(__name__)


def settled_batches(recipe: Recipe) -> Recipe:
    """Return the resolved recipe with the fastest size on this machine for each `auto`, and log it.

    The sizes are measured with the recipe's networks, device, runtime and precision, and cached in
    `compute.engines_folder`. If nothing is augmented, `auto` is the default.

    Raises as `engine.networks.load` and `open` do, and OutOfMemoryError if not even one image fits in memory.
    """
    unsettled = recipe.auto_batches
    recipe = with_default_batches(recipe)
    if not unsettled or recipe.augment.method == "none":
        return recipe
    timing, weights = Timing(recipe), weights_of(recipe)
    for stage in unsettled:
        question = _question(recipe, stage, weights)
        path = cache_path(recipe.compute.engines_folder, stage, question)
        reading, origin = read_cache(path), "from the cache"
        if reading is None:
            reading, origin = _measured(recipe, stage, timing), "measured"
            write_cache(path, reading, question)
        logger.info(f"{stage}: batches of {reading.size} ({reading.rate:.0f} img/s), {origin}")
        recipe = _with(recipe, stage, reading.size)
    timing.close()
    return recipe


def _with(recipe: Recipe, stage: str, size: int) -> Recipe:
    return replace(recipe, **{stage: replace(getattr(recipe, stage), micro_batch=size)})


def _measured(recipe: Recipe, stage: str, timing: Timing) -> Reading:
    """Find the best size; a GPU reports that its memory is full, but the host kills the process."""
    on_gpu = recipe.compute.device == "cuda"
    sizes = candidates(recipe.compute, _most(recipe))
    timing.opened(_with(recipe, stage, sizes[0]))  # the weights are not what grows
    fits = (lambda _now, _next: True) if on_gpu else HostMemory().fits
    return best(sizes, lambda size: timing.measure(_with(recipe, stage, size), stage), fits)


def _most(recipe: Recipe) -> int:
    """Return the variations of a shard, the most images that either stage gets."""
    return recipe.synthesize.batch_size * recipe.augment.variations


def _question(recipe: Recipe, stage: str, weights: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return everything that decides the answer."""
    compute, config = recipe.compute, recipe.augment
    on_gpu = compute.device == "cuda"
    return {
        "stage": stage,
        "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "threads": thread_counts(lanes(recipe))[stage],
        "runtime": [compute.runtime, compute.runtime_precision, compute.precision, compute.compile],
        "networks": {name: [fact["name"], fact["sha256"]] for name, fact in weights.items()},
        "image_size": recipe.teacher.image_size,
        "most": _most(recipe),
        "augment": [config.variations, config.steps, config.strength, config.num_tokens],
        "guided": config.guidance_scale > 1,
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def cache_path(folder: Path, stage: str, question: Mapping[str, Any]) -> Path:
    """Return the file that holds the answer to `question`, which has everything that decides it."""
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    return folder / f"batch-{stage}-{digest[:16]}.json"


def read_cache(path: Path) -> Reading | None:
    """Return the reading, or None if the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        size, rate = found["size"], found["images_per_second"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    sound = type(size) is int and size >= 1 and type(rate) is float and rate > 0
    return Reading(size, rate) if sound else None


def write_cache(path: Path, reading: Reading, question: Mapping[str, Any]) -> None:
    """Write the file atomically, even if several processes write it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {"size": reading.size, "images_per_second": reading.rate, "measured_for": dict(question)}
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.stem}", delete=False, encoding="utf-8"
    ) as part:
        try:
            json.dump(content, part, indent=2)
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).replace(path)
        except BaseException as error:
            Path(part.name).unlink(missing_ok=True)
            if (failure := full_disk(error, path)) is not None:
                raise failure from error
            raise
