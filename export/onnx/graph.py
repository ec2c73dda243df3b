"""Export a spec with torch.onnx: its dynamic axes, in one precision throughout."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.onnx import OnnxExporterError, ONNXProgram

from export.errors import ExportError
from export.onnx.external import check_external_data
from export.onnx.statistics import keep_statistics_in_fp32, narrow_weights
from export.spec import DTYPES, Axis, Input, NetworkSpec, Precision

FILE = "model.onnx"
OPSETS: dict[Precision, int] = {"fp32": 20, "fp16": 22, "bf16": 22}
"""Convolutions support bf16 from opset 22. From opset 21, a GroupNorm is one operator, which suits TensorRT.
OpenVINO is faster with the InstanceNormalization of opset 20, by a third for a UNet."""
ONE_FILE_BYTES = 1 << 30
"""Larger weights go to a separate file, since a protobuf is limited to 2 GB."""


def write_onnx(spec: NetworkSpec, precision: Precision, folder: Path) -> None:
    """Write `folder`/model.onnx, and model.onnx.data if the weights exceed ONE_FILE_BYTES.

    Inputs and outputs are float32. Inside, weights and activations have `precision`; the statistics of
    normalizations and softmaxes are always float32. Raises ExportError if the network cannot be traced or
    the exported graph is invalid.
    """
    module = _InPrecision(spec.module, DTYPES[precision]) if precision != "fp32" else spec.module
    program = _program(spec, module, OPSETS[precision])
    if precision != "fp32":
        narrow_weights(program.model)
        keep_statistics_in_fp32(program.model)
    path = folder / FILE
    size = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
    program.save(path, external_data=size > ONE_FILE_BYTES)
    check_external_data(path)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{spec.name}: the exported graph is invalid: {_first(error)}; use --runtime torch"
        ) from error


class _InPrecision(nn.Module):
    """A copy of the module in `dtype` with float32 inputs and outputs."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = _copied(module, dtype), dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.float() for output in self.module(*(given.to(self.dtype) for given in inputs)))


def _copied(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a deep copy with its weights in `dtype`, without a second copy of the original weights."""

    def narrow(tensor: Tensor) -> Tensor:
        copied = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach().clone()
        return nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied

    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): narrow(tensor) for tensor in tensors})


def _program(spec: NetworkSpec, module: nn.Module, opset: int) -> ONNXProgram:
    sizes = {name: _traced_size(axis) for name, axis in spec.axes().items()}
    shapes = tuple(_names(given) for given in spec.inputs)
    with _quiet(), _without_fast_paths(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                tuple(spec.example(sizes).values()),
                input_names=[given.name for given in spec.inputs],
                output_names=list(spec.outputs),
                dynamic_shapes={"inputs": shapes} if isinstance(module, _InPrecision) else shapes,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # any network's code may raise, and so may the exporter
            cause = error.__cause__ if isinstance(error, OnnxExporterError) and error.__cause__ else error
            raise ExportError(
                f"{spec.name} cannot be exported ({type(cause).__name__}: {_first(cause)});"
                " use --runtime torch"
            ) from error
    assert program is not None
    _check_axes(spec, program)
    return program


def _first(error: BaseException) -> str:
    """Return the first paragraph of an error message as one line."""
    return " ".join(str(error).strip().partition("\n\n")[0].split())


def _traced_size(axis: Axis) -> int:
    """Return a size above 1 if the axis allows it: the exporter specializes on sizes 0 and 1."""
    return min(max(axis.min, 2 * axis.multiple), axis.max)


def _names(given: Input) -> dict[int, str]:
    """Return the names of the axes that vary, by position; the exporter finds their constraints itself."""
    return {
        position: size.name
        for position, size in enumerate(given.shape)
        if isinstance(size, Axis) and size.min < size.max
    }


def _check_axes(spec: NetworkSpec, program: ONNXProgram) -> None:
    """Raise ExportError if the exporter silently fixed an axis or merged two, as some code forces it to."""
    for given, value in zip(spec.inputs, program.model.graph.inputs, strict=True):
        for position, name in _names(given).items():
            assert value.shape is not None
            found = value.shape[position]
            if isinstance(found, int):
                what = f"a single {name} ({found}), because its code depends on it"
            elif found.value != name:
                what = f"{name} equal to {found.value}, because its code compares them"
            else:
                continue
            raise ExportError(f"{spec.name} only runs with {what}; use --runtime torch")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which warns about its internals and prints the graphs it fails to trace."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def _without_fast_paths() -> Iterator[None]:
    """Turn off the fast path of nn.MultiheadAttention, an opaque operator without an ONNX equivalent."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
