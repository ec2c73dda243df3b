"""Replace every `micro_batch: auto` of a recipe by the fastest size, measured once and then cached."""

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
from engine.generation.auto_batch.measure import HostMemory, Measurement, StageTimer, candidates, search
from engine.generation.overlap import stage_groups, thread_counts
from engine.generation.provenance import weights_of
from export.disk import full_disk

logger = logging.getLogger(__name__)


def resolve_micro_batches(recipe: Recipe) -> Recipe:
    """Replace each `micro_batch: auto` by the stage's fastest size on this machine, and log it.

    Everything else in the recipe must be resolved. The sizes are measured with the recipe's networks, device,
    runtime and precision, and cached in `compute.engines_folder`. Without augmentation, `auto` becomes the
    default size.

    Raises as `engine.networks.load` and `open` do, and OutOfMemoryError if not even one image fits in memory.
    """
    stages = recipe.auto_batches
    recipe = with_default_batches(recipe)
    if not stages or recipe.augment.method == "none":
        return recipe
    timer, weights = StageTimer(recipe), weights_of(recipe)
    for stage in stages:
        conditions = _conditions(recipe, stage, weights)
        path = cache_path(recipe.compute.engines_folder, stage, conditions)
        measurement, origin = read_cache(path), "from the cache"
        if measurement is None:
            logger.info(f"{stage}: measuring which batch size is fastest")
            measurement, origin = _measure(recipe, stage, timer), "measured"
            write_cache(path, measurement, conditions)
        logger.info(f"{stage}: batches of {measurement.size} ({measurement.rate:.0f} img/s), {origin}")
        recipe = _with_size(recipe, stage, measurement.size)
    timer.close()
    return recipe


def _with_size(recipe: Recipe, stage: str, size: int) -> Recipe:
    return replace(recipe, **{stage: replace(getattr(recipe, stage), micro_batch=size)})


def _measure(recipe: Recipe, stage: str, timer: StageTimer) -> Measurement:
    """Search for the best size. A GPU reports that its memory is full, but a host kills the process."""
    on_gpu = recipe.compute.device == "cuda"
    sizes = candidates(recipe.compute, _max_images(recipe))
    timer.opened(_with_size(recipe, stage, sizes[0]))  # so that the weights do not count as growth
    fits = (lambda _current, _next: True) if on_gpu else HostMemory().fits
    return search(sizes, lambda size: timer.measure(_with_size(recipe, stage, size), stage), fits)


def _max_images(recipe: Recipe) -> int:
    """Return the number of variations in a shard, the maximum that either stage gets."""
    return recipe.synthesize.batch_size * recipe.augment.variations


def _conditions(recipe: Recipe, stage: str, weights: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return everything that the speed of a stage depends on."""
    compute, config = recipe.compute, recipe.augment
    on_gpu = compute.device == "cuda"
    return {
        "stage": stage,
        "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "threads": thread_counts(stage_groups(recipe))[stage],
        "runtime": [compute.runtime, compute.runtime_precision, compute.precision, compute.compile],
        "networks": {name: [fact["name"], fact["sha256"]] for name, fact in weights.items()},
        "image_size": recipe.teacher.size,
        "maps": [recipe.distill.w_feature > 0, recipe.distill.teacher_taps],
        "most": _max_images(recipe),
        "augment": [config.variations, config.steps, config.strength, config.num_tokens],
        "guided": config.guidance_scale > 1,
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def cache_path(folder: Path, stage: str, conditions: Mapping[str, Any]) -> Path:
    """Return the file for a measurement under `conditions`."""
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return folder / f"batch-{stage}-{digest[:16]}.json"


def read_cache(path: Path) -> Measurement | None:
    """Return the measurement, or None if the file is missing or damaged."""
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
        size, rate = cached["size"], cached["images_per_second"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    is_valid = type(size) is int and size >= 1 and type(rate) is float and rate > 0
    return Measurement(size, rate) if is_valid else None


def write_cache(path: Path, measurement: Measurement, conditions: Mapping[str, Any]) -> None:
    """Write the file atomically; several processes may write it at once."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {
        "size": measurement.size,
        "images_per_second": measurement.rate,
        "measured_for": dict(conditions),
    }
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
