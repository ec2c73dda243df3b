"""A recipe in which every `micro_batch: auto` is a number."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.auto_batch import cache
from engine.auto_batch.auto import with_default_batches
from engine.auto_batch.host_memory import HostMemory
from engine.auto_batch.search import Reading, best, candidates
from engine.auto_batch.timing import Timing
from engine.generation.overlap import lanes, thread_counts
from engine.generation.stages import STAGES, Stage
from engine.provenance import weights_of
from engine.recipe import Recipe


def settled_batches(recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """A settled recipe with the sizes that are fastest here; `say` gets a line for each that was `auto`.

    Measured with the recipe's networks, device, runtime and precision, and kept in `compute.engines_folder`.
    Where nothing is augmented, `auto` is the default. Raises as `assemble` does, and OutOfMemoryError where
    memory does not hold one image.
    """
    unsettled = [stage.name for stage in STAGES if _is_auto(recipe, stage)]
    recipe = with_default_batches(recipe)
    if not unsettled or recipe.augment.method == "none":
        return recipe
    timing, networks = Timing(recipe, say), weights_of(recipe)
    for stage in unsettled:
        question = _question(recipe, stage, networks)
        path = cache.path_of(recipe.compute.engines_folder, stage, question)
        reading, origin = cache.read(path), "from the cache"
        if reading is None:
            reading, origin = _measured(recipe, stage, timing), "measured"
            cache.write(path, reading, question)
        say(f"{stage}: batches of {reading.size} ({reading.rate:.0f} img/s), {origin}")
        recipe = _with(recipe, stage, reading.size)
    timing.close()
    return recipe


def _is_auto(recipe: Recipe, stage: Stage) -> bool:
    return stage.has_micro_batch and getattr(recipe, stage.name).micro_batch == "auto"


def _with(recipe: Recipe, stage: str, size: int) -> Recipe:
    return replace(recipe, **{stage: replace(getattr(recipe, stage), micro_batch=size)})


def _measured(recipe: Recipe, stage: str, timing: Timing) -> Reading:
    """A GPU says when its memory ends; the host's must not."""
    on_gpu = recipe.compute.device == "cuda"
    sizes = candidates(recipe.compute, _most(recipe))
    timing.opened(_with(recipe, stage, sizes[0]))  # the weights are not what grows
    fits = (lambda _now, _next: True) if on_gpu else HostMemory().fits
    return best(sizes, lambda size: timing.measure(_with(recipe, stage, size), stage), fits)


def _most(recipe: Recipe) -> int:
    """Variations of a shard: what either stage is given."""
    return recipe.synthesize.batch_size * recipe.augment.variations


def _question(recipe: Recipe, stage: str, networks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What decides the answer."""
    compute, config = recipe.compute, recipe.augment
    on_gpu = compute.device == "cuda"
    return {
        "stage": stage,
        "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "threads": thread_counts(lanes(recipe))[stage],
        "runtime": [compute.runtime, compute.runtime_precision, compute.precision, compute.compile],
        "networks": {name: [fact["name"], fact["sha256"]] for name, fact in networks.items()},
        "image_size": recipe.teacher.image_size,
        "most": _most(recipe),
        "augment": [config.variations, config.steps, config.strength, config.num_tokens],
        "guided": config.guidance_scale > 1,
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")
