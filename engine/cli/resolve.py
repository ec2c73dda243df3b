"""Give every `auto` and null of a recipe the value that this machine gives it, once.

What opens a device, a runtime or a feed asserts that this has been done (`is_resolved`).
"""

import logging
from dataclasses import replace
from importlib.util import find_spec
from typing import Literal

from engine.bank.reader import read_manifest
from engine.bank.storage import open_storage
from engine.config.compute import ComputeConfig, Runtime, RuntimePrecision
from engine.config.feed import FeedConfig
from engine.config.recipe import Recipe, with_default_batches
from engine.config.tensorrt import TensorRtConfig
from engine.errors import UserError
from engine.hardware import native_precision, native_runtime
from export.errors import RuntimeUnavailableError

logger = logging.getLogger(__name__)


def resolve(
    recipe: Recipe, batches: Literal["default", "measured"] = "default", threads: int | None = None
) -> Recipe:
    """Return the recipe with a value for every `auto` and null that depends on the machine.

    Args:
        batches: what an `auto` micro-batch becomes: the default size, or the fastest, measured here.
        threads: `compute.threads` if the recipe leaves it null, at least 1; by default torch's own choice.

    Raises:
        UserError: if a setting does not fit this machine.
        RuntimeUnavailableError: if the runtime cannot run here.
        OutOfMemoryError: if memory does not hold a measured batch of one image.
    """
    recipe = replace(
        recipe,
        compute=resolve_compute(recipe.compute, recipe.tensorrt, threads=threads),
        feed=_feed(recipe.feed),
    )
    if recipe.has_auto_batch and batches == "measured":
        from engine.generation.auto_batch.resolve import resolve_micro_batches

        recipe = resolve_micro_batches(recipe)
    recipe = with_default_batches(recipe)
    assert recipe.is_resolved
    return recipe


def resolve_compute(
    config: ComputeConfig,
    tensorrt: TensorRtConfig | None = None,
    *,
    threads: int | None = None,
    must_run: bool = True,
) -> ComputeConfig:
    """Return the configuration with a value for every `auto` and null; the part of `resolve` for a device.

    Without `must_run` the runtime need not be able to run here, as engines may be built for another GPU. With
    `tensorrt`, the settings of its engines, torch replaces TensorRT if this GPU runs none of them.
    """
    used = _with_values(config, threads)
    if must_run:
        _require_runtime(used)
    if must_run and tensorrt is not None and used.runtime == "tensorrt":
        return runnable(used, tensorrt)
    return used


def threads_of_bank(url: str) -> int | None:
    """Return `compute.threads` of the bank at `url`, None if there is no bank; its bytes depend on them."""
    try:
        recipe = read_manifest(open_storage(url)).header.recipe
    except UserError:
        return None
    threads: int | None = recipe.get("compute", {}).get("threads")
    return threads


def _with_values(config: ComputeConfig, default_threads: int | None) -> ComputeConfig:
    import torch

    has_cuda = torch.cuda.is_available()
    device = config.device
    if device == "auto":
        device = "cuda" if has_cuda and config.runtime != "openvino" else "cpu"
    if device == "cuda" and not has_cuda:
        raise UserError("compute.device cuda: torch sees no GPU here; take --compute.device cpu")
    precision = config.precision if config.precision != "auto" else native_precision(device)
    runtime = config.runtime if config.runtime != "auto" else native_runtime(device, config.compile)
    shared = torch.get_num_threads() if default_threads is None else max(1, default_threads)
    threads = config.threads or shared
    return replace(
        config,
        device=device,
        precision=precision,
        runtime=runtime,
        runtime_precision=_runtime_precision(config, runtime, device, precision),
        threads=threads,
        overlap=_overlap(config, device, threads),
    )


def _overlap(config: ComputeConfig, device: str, threads: int) -> bool:
    if config.overlap is True and device == "cpu" and threads < 2:
        raise UserError(
            f"compute.overlap true shares out compute.threads, which is {threads} here; give 2 or more, or "
            "--compute.overlap false"
        )
    return device == "cuda" and not config.compile if config.overlap == "auto" else config.overlap


def _require_runtime(config: ComputeConfig) -> None:
    runtime = config.runtime
    if runtime == "tensorrt":
        from engine.runtime.tensorrt import require_gpu

        require_gpu()
        if config.device == "cpu":
            raise UserError("compute.runtime tensorrt runs on the GPU; leave --compute.device cpu out")
    elif runtime == "openvino" and config.device != "cpu":
        raise UserError("compute.runtime openvino runs on CPUs; take --compute.device cpu or --runtime torch")
    elif not find_spec(runtime):
        raise RuntimeUnavailableError(
            f"compute.runtime {runtime}: the package is not installed; pip install {runtime}, or take "
            "--runtime torch"
        )


def _runtime_precision(
    config: ComputeConfig, runtime: Runtime, device: str, precision: Literal["fp32", "bf16"]
) -> RuntimePrecision:
    if config.runtime_precision != "auto":
        return config.runtime_precision
    if runtime in ("torch", "openvino"):
        return precision
    return "fp16" if runtime == "tensorrt" or device == "cuda" else "fp32"


def runnable(compute: ComputeConfig, config: TensorRtConfig) -> ComputeConfig:
    """Return `compute`, of runtime tensorrt, or torch instead if this GPU builds or loads no engine.

    TensorRT-RTX has no kernels for data-centre GPUs such as the H100 (compute capability 9.0). Raises
    RuntimeUnavailableError if the package is missing, ExportError for options that no build can take.
    """
    from engine.runtime.tensorrt_probe import unsupported_reason

    reason = unsupported_reason(config)
    if reason is None:
        return compute
    logger.warning("%s; the frozen networks run in torch instead, compiled, as CUDA graphs", reason)
    return _with_values(
        replace(compute, runtime="torch", runtime_precision="auto", compile=True, overlap="auto"), None
    )


def _feed(config: FeedConfig) -> FeedConfig:
    """Return the configuration with the kind that is installed for `auto`.

    Raises UserError for DALI if it is not installed.
    """
    installed = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    if config.kind == "dali" and not installed:
        raise UserError(
            "feed.kind dali: the package is not installed; pip install 'dda-engine[dali]', or take "
            "--feed.kind torch"
        )
    return replace(config, kind="dali" if installed and config.kind != "torch" else "torch")
