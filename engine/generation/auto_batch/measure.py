"""Measure the speed of a stage at growing batch sizes, and choose one."""

import ctypes
import logging
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache

from engine import networks
from engine.config.compute import ComputeConfig
from engine.config.recipe import Recipe
from engine.distributed import open_accelerator
from engine.generation.overlap import stage_groups, thread_counts, torch_threads
from engine.networks import LoadedNetworks, OpenNetworks
from engine.runtime.micro_batch import MicroBatch
from engine.stages.augment import augment
from engine.stages.batch import ImageBatch
from engine.stages.filter import filter_variations

MIN_SPEEDUP = 1.05
"""Minimum speed-up that justifies the memory of a larger size."""
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
OPENVINO_SIZES = (32, 64, 128, 256)
"""OpenVINO compiles for chunks of at most 32 (`CPU_CHUNK`): only the first two cost a compilation."""
BUILT_SIZES = (16, 64, 256)
"""For TensorRT and torch.compile: each size costs minutes to build."""
REPEATS, SECONDS = 2, 1.0
"""Minimum number and total seconds of the timed runs after a warm-up; the fastest one counts."""
RUNTIMES_BUILT_PER_SIZE = ("openvino", "tensorrt")
MEMORY_SHARE = 0.5
"""Fraction of the available memory that the next size may need."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Measurement:
    """The speed of a stage at one batch size."""

    size: int
    """Batch size; smaller than requested if that did not fit in memory."""
    rate: float
    """Images per second."""


def candidates(compute: ComputeConfig, max_images: int) -> Sequence[int]:
    """Return the sizes to try, ascending; `max_images` is the maximum that the stage gets."""
    if compute.runtime == "tensorrt" or compute.compile:
        sizes: Sequence[int] = BUILT_SIZES
    else:
        sizes = OPENVINO_SIZES if compute.runtime == "openvino" else SIZES
    return [size for size in sizes if size <= max_images] or [max_images]


def search(
    sizes: Sequence[int], measure: Callable[[int], Measurement], fits: Callable[[int, int], bool]
) -> Measurement:
    """Return the measurement of the smallest batch size whose successor is less than 5 % faster.

    `sizes` must ascend. The search also ends at a size that does not fit in memory, and before a size that
    `fits(current, next)`, called after `current` has run, predicts not to fit.
    """
    best = measure(sizes[0])
    for before, size in zip(sizes, sizes[1:], strict=False):
        if best.size < before or not fits(before, size):
            break
        measurement = measure(size)
        if measurement.size < size or measurement.rate < MIN_SPEEDUP * best.rate:
            break
        best = measurement
    return best


def available_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """Return the bytes available without swapping, within the limit of a container (cgroup v2)."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and (maximum := limit.read_text(encoding="utf-8").strip()) != "max":
        free = min(free, int(maximum) - int(used.read_text(encoding="utf-8")))
    return free


class HostMemory:
    """Predicts whether a larger batch fits in memory, because the host kills processes that exceed it.

    The prediction scales the process's peak memory since construction, which grows at most in proportion to
    the batch size.
    """

    def __init__(self, available: Callable[[], int] = available_bytes) -> None:
        self._available = available
        with suppress(AttributeError):  # only glibc keeps freed memory mapped, which would hide growth
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):  # if this is not allowed, an earlier peak counts, and the search ends sooner
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self._start = _resident_bytes()

    def fits(self, current: int, next: int) -> bool:
        """Return whether batches of `next` images will fit, after batches of `current` have run."""
        needed = (_peak_bytes() - self._start) * next / current
        allocated = _resident_bytes() - self._start
        return needed - allocated <= MEMORY_SHARE * self._available()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


class StageTimer:
    """Measures the stages of recipes that differ only in their micro-batch sizes, with the same networks."""

    def __init__(self, recipe: Recipe) -> None:
        self._accelerator = open_accelerator(recipe.compute)
        self._threads = thread_counts(stage_groups(recipe))
        self._loaded: LoadedNetworks | None = None
        self._opened: OpenNetworks | None = None

    def measure(self, recipe: Recipe, stage: str) -> Measurement:
        """Measure "augment" or "filter" at its micro-batch size, or at a smaller one that fits in memory.

        Raises OutOfMemoryError if not even one image fits.
        """
        opened, requested = self.opened(recipe), getattr(recipe, stage).images_at_once
        micro_batch = MicroBatch(stage, requested, level=logging.DEBUG)
        run = self._augment if stage == "augment" else self._filter
        with torch_threads(self._threads[stage]):
            run(recipe, opened, micro_batch, requested)
            size, seconds = micro_batch.size, list[float]()
            while len(seconds) < REPEATS or sum(seconds) < SECONDS:
                start = time.perf_counter()
                run(recipe, opened, micro_batch, size)
                seconds.append(time.perf_counter() - start)
        return Measurement(micro_batch.size, size / min(seconds))

    def close(self) -> None:
        """Free the networks and their memory."""
        self._loaded = self._opened = None
        clear_device_cache(garbage_collection=True)

    def opened(self, recipe: Recipe) -> OpenNetworks:
        """Return the open networks: loaded once, but opened for each size if the runtime builds per size."""
        compute = recipe.compute
        if self._opened is None or compute.compile or compute.runtime in RUNTIMES_BUILT_PER_SIZE:
            self._opened = None
            clear_device_cache(garbage_collection=True)
            device = self._accelerator.device
            if self._loaded is None:
                self._loaded = networks.load(recipe, device, level=logging.DEBUG)
            self._place_prior(device)
            self._opened = networks.open(
                recipe, self._loaded, self._accelerator, self._threads, level=logging.DEBUG
            )
            if compute.runtime != "torch":  # as a run does, free the prior's modules once they are open
                self._place_prior(torch.device("cpu"))
                clear_device_cache(garbage_collection=True)
        return self._opened

    def _place_prior(self, device: torch.device) -> None:
        assert self._loaded is not None
        if self._loaded.prior is not None:
            self._loaded.prior.place(device)

    def _augment(self, recipe: Recipe, opened: OpenNetworks, micro_batch: MicroBatch, size: int) -> None:
        """Run the stage on one micro-batch of variations and their sources."""
        assert opened.prior is not None
        count = -(-size // recipe.augment.variations)
        batches = augment(
            _noise(recipe, count),
            opened.prior,
            recipe.augment,
            seed=recipe.seed,
            class_tokens=opened.class_tokens,
            device=self._accelerator.device,
            micro_batch=micro_batch,
        )
        next(batches)

    def _filter(self, recipe: Recipe, opened: OpenNetworks, micro_batch: MicroBatch, size: int) -> None:
        """Run the stage on one micro-batch of variations and their sources."""
        sources = _noise(recipe, -(-size // recipe.augment.variations))
        rows = torch.arange(size) // recipe.augment.variations
        variations = replace(sources[rows], keys=torch.arange(size), parents=sources.keys[rows])
        filter_variations(
            sources,
            variations,
            opened.clip,
            opened.class_texts,
            opened.teacher_forward,
            recipe.filter,
            self._accelerator.device,
            micro_batch,
        )


def _noise(recipe: Recipe, count: int) -> ImageBatch:
    """Return `count` sources of random pixels."""
    size = recipe.teacher.size
    generator = torch.Generator().manual_seed(recipe.seed)
    keys = torch.arange(count) * (recipe.augment.variations + 1)
    return ImageBatch(
        images=torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator),
        labels=torch.arange(count) % len(recipe.names),
        keys=keys,
        parents=torch.full_like(keys, -1),
        seeds=torch.zeros_like(keys),
    )
