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

WIDTH = 8


def runnable(compute: ComputeConfig, config: TensorRtConfig, say: Callable[[str], None]) -> ComputeConfig:
    """`compute`, of runtime tensorrt, or torch in its place where this GPU builds or loads no engine; `say`
    is told.

    TensorRT-RTX has no kernels for data-centre GPUs such as the H100 (compute capability 9.0). Raises
    RuntimeUnavailableError where the package is missing, ExportError for options that no build can take.
    """
    reason = _refusal(config)
    if reason is None:
        return compute
    say(f"{reason}; the frozen networks run in torch instead, compiled, as CUDA graphs")
    asked = replace(compute, runtime="torch", runtime_precision="auto", compile=True, overlap="auto")
    return settled(asked)


class _Probe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x @ self.weight,)


def _refusal(config: TensorRtConfig) -> str | None:
    """Why the current GPU builds or runs no engine of `config`, None where it does.

    Asked with one of eight by eight weights, for which no limit of scratch memory is to blame.
    """
    from export.tensorrt import targets
    from export.tensorrt.builder import build_engine
    from export.tensorrt.loading import load_engine

    options = replace(build_options(config), workspace_bytes=None)
    targets.check(options)
    rows = Axis(name="batch", min=1, opt=2, max=4)
    spec = NetworkSpec(
        name="probe", module=_Probe(), inputs=(Input(name="x", shape=(rows, WIDTH)),), outputs=("y",)
    )
    with tempfile.TemporaryDirectory() as folder:
        graph, engine = Path(folder, FILE), Path(folder, ENGINE)
        write_onnx(spec, "fp32", Path(folder))
        try:
            build_engine(graph, engine, spec.shapes(), options, lambda *_: None)
            weights = graph if config.refit == "stripped" else None
            load_engine(engine.read_bytes(), weights=weights)
        except RuntimeUnavailableError as error:
            return str(error)
    torch.cuda.synchronize()
    return None
