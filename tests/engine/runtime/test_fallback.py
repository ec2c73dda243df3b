"""A GPU that TensorRT does not support: torch runs in its place, and the run says so."""

from pathlib import Path

import pytest
import torch

from engine.compute import ComputeConfig
from engine.runtime.fallback import runnable
from engine.runtime.tensorrt_config import TensorRtConfig
from export.errors import RuntimeUnavailableError

ASKED = ComputeConfig(device="cpu", precision="bf16", runtime="tensorrt", runtime_precision="fp16", threads=2)


def test_an_engine_that_does_not_load_gives_way_to_torch_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    built: list[int] = []

    def refuse(blob: bytes, **_: object) -> None:
        built.append(len(blob))
        raise RuntimeUnavailableError("the engine was not built for compute capability 9.0")

    monkeypatch.setattr("export.tensorrt.loading.load_engine", refuse)
    said: list[str] = []
    used = runnable(ASKED, TensorRtConfig(), said.append)
    assert built[0] > 1000, "a real engine was built"
    assert (used.runtime, used.runtime_precision, used.compile) == ("torch", "bf16", True)
    assert said == [
        "the engine was not built for compute capability 9.0;"
        " the frozen networks run in torch instead, compiled, as CUDA graphs"
    ]


@pytest.mark.gpu
def test_what_runs_here_is_kept_or_gives_way(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    said: list[str] = []
    used = runnable(ASKED, TensorRtConfig(), said.append)
    assert (used.runtime == "tensorrt") == (not said)
    assert torch.cuda.is_available()
    assert not list(tmp_path.iterdir())
