"""The GPUs an engine is built for.

TensorRT-RTX builds for a list of GPUs and needs none for it, but to make weights exchangeable. Classic
TensorRT times kernels on the GPU at hand and builds for that one.
"""

import torch

from export.errors import ExportError, RuntimeUnavailableError
from export.tensorrt.bindings import IS_RTX, LOGGER, VERSION, trt
from export.tensorrt.options import BuildOptions


def check(options: BuildOptions) -> None:
    """Raises ExportError for what this TensorRT cannot build, here or at all."""
    if not IS_RTX and options.compute_capabilities and not options.for_current_gpu:
        raise ExportError(f"{VERSION} builds for the GPU at hand alone; leave compute_capabilities out")
    if torch.cuda.is_available():
        return
    if not IS_RTX:
        raise RuntimeUnavailableError(
            f"{VERSION} builds on a machine with an NVIDIA GPU alone, and there is none here;"
            " build there, or pip install tensorrt-rtx in its place"
        )
    if asks_the_gpu(options):
        option = "compute_capabilities=current" if options.for_current_gpu else f"refit={options.refit}"
        raise RuntimeUnavailableError(
            f"{VERSION} needs an NVIDIA GPU to build with {option}, and there is none here;"
            f" build on a machine with one, or without {option}"
        )


def asks_the_gpu(options: BuildOptions) -> bool:
    """Whether the build depends on the GPU at hand."""
    return not IS_RTX or options.for_current_gpu or options.refit != "no"


def set_targets(config: trt.IBuilderConfig, options: BuildOptions) -> None:
    """Tells the builder the GPUs. Raises RuntimeUnavailableError where it does not take the one at hand."""
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
            f"{VERSION} cannot build for compute capability {capability}; it knows {', '.join(known)};"
            " for other GPUs take classic TensorRT or --runtime torch"
        )
    return known[capability]


def device(options: BuildOptions) -> str:
    """The GPU that an engine is bound to; "any" of its targets where it is bound to none."""
    if IS_RTX and not options.for_current_gpu:
        return "any"
    return torch.cuda.get_device_name()
