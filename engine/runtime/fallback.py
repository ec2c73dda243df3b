"""What runs in TensorRT's place on a GPU that it does not support."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.compute import ComputeConfig, settled
from engine.runtime.artifacts import build_options
from engine.runtime.tensorrt_config import TensorRtConfig
from export.errors import RuntimeUnavailableError
from export.onnx import FILE, write_onnx
from export.spec import Axis, Input, NetworkSpec
from export.tensorrt.options import FILE as ENGINE


def runnable(compute: ComputeConfig, config: TensorRtConfig, say: Callable[[str], None]) -> ComputeConfig:
    """`compute`, of runtime tensorrt, or torch in its place where this GPU loads no engine; `say` is told.

    TensorRT-RTX has no kernels for data-centre GPUs such as the H100 (compute capability 9.0). Raises
    RuntimeUnavailableError where the package is missing.
    """
    reason = _refusal(config)
    if reason is None:
        return compute
    say(f"{reason}; the frozen networks run in torch instead, compiled, as CUDA graphs")
    asked = replace(compute, runtime="torch", runtime_precision="auto", compile=True, overlap="auto")
    return settled(asked)


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x + x,)


def _refusal(config: TensorRtConfig) -> str | None:
    """Why an engine built with `config` does not run on the current GPU, None where it does."""
    from export.tensorrt.builder import build_engine
    from export.tensorrt.loading import load_engine

    rows = Axis(name="batch", min=1, opt=2, max=4)
    spec = NetworkSpec(
        name="probe", module=_Doubled(), inputs=(Input(name="x", shape=(rows, 8)),), outputs=("y",)
    )
    with tempfile.TemporaryDirectory() as folder:
        graph, engine = Path(folder, FILE), Path(folder, ENGINE)
        write_onnx(spec, "fp32", Path(folder))
        build_engine(graph, engine, spec.shapes(), build_options(config), lambda *_: None)
        try:
            weights = graph if config.refit == "stripped" else None
            load_engine(engine.read_bytes(), weights=weights, say=lambda _: None)
        except RuntimeUnavailableError as error:
            return str(error)
    torch.cuda.synchronize()
    return None
