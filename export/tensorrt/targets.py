"""Choose the GPUs that an engine is built for.

TensorRT-RTX builds for a list of GPUs and needs a GPU only to make an engine refittable. Classic TensorRT
times kernels on the current GPU and builds for that one only.
"""

import torch

from export.errors import ExportError, RuntimeUnavailableError
from export.tensorrt.bindings import IS_RTX, LOGGER, VERSION, trt
from export.tensorrt.options import BuildOptions


def check(options: BuildOptions) -> None:
    """Raise ExportError if this TensorRT cannot build with these options on this machine."""
    if not IS_RTX and options.compute_capabilities and not options.for_current_gpu:
        raise ExportError(f"{VERSION} builds only for the current GPU; remove compute_capabilities")
    if torch.cuda.is_available():
        return
    if not IS_RTX:
        raise RuntimeUnavailableError(
            f"{VERSION} needs an NVIDIA GPU to build, and this machine has none;"
            " build on a machine with one, or pip install tensorrt-rtx instead"
        )
    if needs_gpu(options):
        option = "compute_capabilities=current" if options.for_current_gpu else f"refit={options.refit}"
        raise RuntimeUnavailableError(
            f"{VERSION} needs an NVIDIA GPU to build with {option}, and this machine has none;"
            f" build on a machine with one, or remove {option}"
        )


def needs_gpu(options: BuildOptions) -> bool:
    """Return whether the build needs a GPU."""
    return not IS_RTX or options.for_current_gpu or options.refit != "no"


def set_targets(config: trt.IBuilderConfig, options: BuildOptions) -> None:
    """Pass the target GPUs to the builder. Raises RuntimeUnavailableError if it rejects the current GPU."""
    if not (IS_RTX and options.compute_capabilities):
        return
    config.num_compute_capabilities = len(options.compute_capabilities)
    for index, capability in enumerate(options.compute_capabilities):
        if not config.set_compute_capability(_target(capability), index):
            kind = RuntimeUnavailableError if options.for_current_gpu else ExportError
            raise kind(f"{VERSION} cannot build for compute capability {capability}: {LOGGER.take()}")


def _target(capability: str) -> trt.ComputeCapability:
    known = {
        name.lower() if name == "CURRENT" else f"{name[2:-1]}.{name[-1]}": target
        for name, target in trt.ComputeCapability.__members__.items()
        if name != "NONE"
    }
    if capability not in known:
        raise ExportError(
            f"{VERSION} cannot build for compute capability {capability}, only for {', '.join(known)};"
            " for other GPUs use classic TensorRT or --runtime torch"
        )
    return known[capability]


def device(options: BuildOptions) -> str:
    """Return the GPU that an engine is bound to, or "any" if it runs on all of its targets."""
    if IS_RTX and not options.for_current_gpu:
        return "any"
    return torch.cuda.get_device_name()
