"""Replace every `auto` and null of a recipe that depends on machine or networks by a value, once.

The functions that open a device, a runtime or a feed assert that their settings are resolved.
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
    recipe: Recipe,
    batches: Literal["default", "measured"] = "default",
    threads: int | None = None,
    *,
    makes_images: bool = True,
) -> Recipe:
    """Return the recipe with a value for every `auto` and null that depends on the machine or the networks.

    Args:
        batches: whether an automatic micro-batch gets the default size or the fastest one, measured here.
        makes_images: whether the command makes images, so that a prior must be tried.
        threads: `compute.threads` if the recipe leaves it null, at least 1; by default torch's choice.

    Raises:
        UserError: if a setting does not fit this machine, or cannot be read from the networks.
        RuntimeUnavailableError: if the runtime cannot run here.
        OutOfMemoryError: if not even a batch of one image fits in memory when batches are measured.
    """
    recipe = read_networks(recipe)
    recipe = replace(
        recipe,
        compute=resolve_compute(recipe.compute, recipe.tensorrt, threads=threads),
        feed=_resolve_feed(recipe.feed),
    )
    if recipe.augment.method == "auto" and makes_images:
        from engine.generation.prior_fit import fit_prior

        recipe = fit_prior(recipe)
    elif recipe.augment.method == "auto":
        recipe = replace(recipe, augment=replace(recipe.augment, method="variation"))
    if recipe.auto_batches and batches == "measured":
        from engine.generation.auto_batch.resolve import resolve_micro_batches

        recipe = resolve_micro_batches(recipe)
    recipe = with_default_batches(recipe)
    assert recipe.is_resolved
    return recipe


def read_networks(recipe: Recipe) -> Recipe:
    """Return the recipe with a value for all that its networks decide. Raises UserError as `resolve` does."""
    if recipe.is_read:
        return recipe
    from engine.models.reading import read

    return read(recipe)


def resolve_compute(
    config: ComputeConfig,
    tensorrt: TensorRtConfig | None = None,
    *,
    threads: int | None = None,
    must_run: bool = True,
) -> ComputeConfig:
    """Return the configuration with a value for every `auto` and null that depends on the machine.

    Args:
        tensorrt: settings of the engines; with them, torch replaces TensorRT if this GPU cannot run engines.
        threads: as for `resolve`.
        must_run: whether the runtime must run here; engines may be built for another GPU.

    Raises:
        UserError: if a setting does not fit this machine.
        RuntimeUnavailableError: if the runtime cannot run here.
    """
    resolved = _with_values(config, threads)
    if must_run:
        _require_runtime(resolved)
    if must_run and tensorrt is not None and resolved.runtime == "tensorrt":
        return with_torch_fallback(resolved, tensorrt)
    return resolved


def threads_of_bank(url: str) -> int | None:
    """Return `compute.threads` of the bank at `url`, on which its bytes depend, or None without a bank."""
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
        raise UserError("compute.device is cuda, but torch sees no GPU here; set it to cpu")
    precision = config.precision if config.precision != "auto" else native_precision(device)
    runtime = config.runtime if config.runtime != "auto" else native_runtime(device, config.compile)
    default = torch.get_num_threads() if default_threads is None else max(1, default_threads)
    threads = config.threads or default
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
            f"compute.overlap is true, which divides compute.threads, but that is {threads}; set "
            "compute.threads to 2 or more, or compute.overlap to false"
        )
    return device == "cuda" and not config.compile if config.overlap == "auto" else config.overlap


def _require_runtime(config: ComputeConfig) -> None:
    runtime = config.runtime
    if runtime == "tensorrt":
        from engine.runtime.tensorrt import require_gpu

        require_gpu()
        if config.device == "cpu":
            raise UserError("compute.runtime is tensorrt, but compute.device is cpu; set the device to cuda")
    elif runtime == "openvino" and config.device != "cpu":
        raise UserError(
            f"compute.runtime is openvino, but compute.device is {config.device}; set the device to cpu, or "
            "the runtime to torch"
        )
    elif not find_spec(runtime):
        raise RuntimeUnavailableError(
            f"compute.runtime is {runtime}, but the package is not installed; pip install {runtime}, or set "
            "the runtime to torch"
        )


def _runtime_precision(
    config: ComputeConfig, runtime: Runtime, device: str, precision: Literal["fp32", "bf16"]
) -> RuntimePrecision:
    if config.runtime_precision != "auto":
        return config.runtime_precision
    if runtime in ("torch", "openvino"):
        return precision
    return "fp16" if runtime == "tensorrt" or device == "cuda" else "fp32"


def with_torch_fallback(compute: ComputeConfig, config: TensorRtConfig) -> ComputeConfig:
    """Return `compute` unchanged, or with compiled torch if this GPU cannot build or load an engine.

    TensorRT-RTX has no kernels for data-center GPUs such as the H100 (compute capability 9.0).

    Args:
        compute: a resolved configuration with runtime tensorrt.

    Raises:
        RuntimeUnavailableError: if the package is missing.
        ExportError: if no build accepts the options.
    """
    from engine.runtime.tensorrt_probe import unsupported_reason

    reason = unsupported_reason(config)
    if reason is None:
        return compute
    logger.warning("%s; using torch for the frozen networks instead, compiled, with CUDA graphs", reason)
    return _with_values(
        replace(compute, runtime="torch", runtime_precision="auto", compile=True, overlap="auto"), None
    )


def _resolve_feed(config: FeedConfig) -> FeedConfig:
    """Return the configuration with an installed kind. Raises UserError if DALI is requested but missing."""
    installed = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    if config.kind == "dali" and not installed:
        raise UserError(
            "feed.kind is dali, but the package is not installed; pip install 'dda-engine[dali]', or set "
            "feed.kind to torch"
        )
    return replace(config, kind="dali" if installed and config.kind != "torch" else "torch")
