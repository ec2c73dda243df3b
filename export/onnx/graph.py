"""torch.onnx's exporter with the axes of a spec, and one precision throughout."""

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
from export.onnx.statistics import keep_statistics_in_fp32
from export.onnx.widened import narrow_weights
from export.spec import DTYPES, Axis, Input, NetworkSpec, Precision

FILE = "model.onnx"
OPSETS: dict[Precision, int] = {"fp32": 20, "fp16": 22, "bf16": 22}
"""bf16 convolutions begin with 22. From 21 on a GroupNorm is one operator, which TensorRT takes as it is; in
OpenVINO its InstanceNormalization of opset 20 runs faster, a UNet by a third."""
ONE_FILE_BYTES = 1 << 30
"""Weights above this go to a file of their own: one protobuf ends at 2 GB."""


def write_onnx(spec: NetworkSpec, precision: Precision, folder: Path) -> None:
    """Writes `folder`/model.onnx, and model.onnx.data where the weights are large.

    Inputs and outputs are float32. Inside, weights and activations are of `precision`; the statistics of
    normalizations and softmaxes are float32 whatever it is. Raises ExportError where the network cannot be
    traced or its graph is not sound.
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
        raise ExportError(f"{spec.name}: the exported graph is not sound: {_first(error)}") from error


class _InPrecision(nn.Module):
    """A copy of the module in `dtype`, float32 at its doors."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = _copied(module, dtype), dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.float() for output in self.module(*(given.to(self.dtype) for given in inputs)))


def _copied(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A deep copy with its weights in `dtype`, which are all that it takes memory for."""

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
        except Exception as error:  # the network may be anyone's, and the exporter raises what it likes
            cause = error.__cause__ if isinstance(error, OnnxExporterError) and error.__cause__ else error
            raise ExportError(
                f"{spec.name} cannot be exported ({type(cause).__name__}: {_first(cause)});"
                " take --runtime torch"
            ) from error
    assert program is not None
    _check_axes(spec, program)
    return program


def _first(error: BaseException) -> str:
    """The first paragraph of its message in one line."""
    return " ".join(str(error).strip().partition("\n\n")[0].split())


def _traced_size(axis: Axis) -> int:
    """A size that no rule for sizes 0 and 1 applies to."""
    return min(max(axis.min, 2 * axis.multiple), axis.max)


def _names(given: Input) -> dict[int, str]:
    """The axes that vary; the exporter finds for itself what holds between them."""
    return {
        place: size.name
        for place, size in enumerate(given.shape)
        if isinstance(size, Axis) and size.min < size.max
    }


def _check_axes(spec: NetworkSpec, program: ONNXProgram) -> None:
    """The exporter fixes an axis, or takes two for one, in silence where the network's code asks for them."""
    for given, value in zip(spec.inputs, program.model.graph.inputs, strict=True):
        for place, name in _names(given).items():
            assert value.shape is not None
            found = value.shape[place]
            if isinstance(found, int):
                what = f"one {name} only ({found}): its code depends on it"
            elif found.value != name:
                what = f"{name} equal to {found.value} only: its code compares them"
            else:
                continue
            raise ExportError(f"{spec.name} runs with {what}; take --runtime torch")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own workings, and prints the graphs of what it fails to trace."""
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
    """nn.MultiheadAttention's fast path is one opaque operator, which has no ONNX form."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
