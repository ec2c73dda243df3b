"""Find out whether TensorRT can build and run engines on this GPU."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.config.tensorrt import TensorRtConfig
from engine.runtime.artifacts import build_options
from export.errors import RuntimeUnavailableError
from export.onnx import FILE, write_onnx
from export.spec import Axis, Input, NetworkSpec
from export.tensorrt.options import FILE as ENGINE

WIDTH = 8


class _Probe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x @ self.weight,)


def unsupported_reason(config: TensorRtConfig) -> str | None:
    """Return why the current GPU cannot build or run engines with `config`, or None if it can.

    Probes with an 8x8 matmul, so that a workspace limit cannot cause the failure.
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
