"""A GPU that TensorRT does not support: torch runs in its place, and the run says so."""

import sys
from types import SimpleNamespace

import pytest
import torch

from engine.cli.resolve import runnable
from engine.config.compute import ComputeConfig
from engine.config.tensorrt import TensorRtConfig
from export.errors import ExportError, RuntimeUnavailableError

ASKED = ComputeConfig(device="cpu", precision="bf16", runtime="tensorrt", runtime_precision="fp16", threads=2)


def test_an_engine_that_does_not_load_gives_way_to_torch_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("tensorrt_rtx")
    built: list[int] = []

    def refuse(blob: bytes, **_: object) -> None:
        built.append(len(blob))
        raise RuntimeUnavailableError("the engine was not built for compute capability 9.0")

    monkeypatch.setattr("export.tensorrt.loading.load_engine", refuse)
    used = runnable(ASKED, TensorRtConfig())
    said = capsys.readouterr().out.splitlines()
    assert built[0] > 1000, "a real engine was built"
    assert (used.runtime, used.runtime_precision, used.compile) == ("torch", "bf16", True)
    assert said == [
        "the engine was not built for compute capability 9.0;"
        " the frozen networks run in torch instead, compiled, as CUDA graphs"
    ]


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("set_compute_capability", TensorRtConfig(compute_capabilities=("current",))),
        ("build_serialized_network", TensorRtConfig(compute_capabilities=("current",))),
        ("build_serialized_network", TensorRtConfig(refit="stripped")),
    ],
)
def test_a_gpu_that_no_engine_is_built_for_gives_way_to_torch_aloud(
    monkeypatch: pytest.MonkeyPatch, method: str, config: TensorRtConfig, capsys
) -> None:
    """As with TensorRT-RTX on an H100: the builder does not take the GPU, or builds nothing."""
    pytest.importorskip("tensorrt_rtx")
    from export.tensorrt import targets
    from export.tensorrt.bindings import LOGGER, trt

    def refused(*_: object) -> None:
        LOGGER.log(trt.ILogger.Severity.ERROR, "SM 90 is not supported")

    owner = {"set_compute_capability": trt.IBuilderConfig, "build_serialized_network": trt.Builder}[method]
    monkeypatch.setattr(owner, method, refused)
    monkeypatch.setattr(targets, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True)))
    used = runnable(ASKED, config)
    said = capsys.readouterr().out.splitlines()
    assert used.runtime == "torch"
    assert len(said) == 1
    assert "SM 90 is not supported" in said[0]
    assert said[0].endswith("the frozen networks run in torch instead, compiled, as CUDA graphs")


def test_options_that_no_build_takes_stay_errors() -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(ExportError, match=r"cannot build for compute capability 9\.7, only for"):
        runnable(ASKED, TensorRtConfig(compute_capabilities=(9.7,)))


def test_a_missing_package_stays_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("export.tensorrt")]:
        monkeypatch.delitem(sys.modules, name)
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delattr("export.tensorrt")
    with pytest.raises(RuntimeUnavailableError, match="pip install 'dda-engine\\[trt\\]'"):
        runnable(ASKED, TensorRtConfig())


@pytest.mark.gpu
def test_this_gpu_runs_tensorrt_where_it_is_among_its_targets(capsys) -> None:
    pytest.importorskip("tensorrt_rtx")
    from export.tensorrt.bindings import IS_RTX, trt

    major, minor = torch.cuda.get_device_capability()
    supported = not IS_RTX or f"SM{major}{minor}" in trt.ComputeCapability.__members__
    used = runnable(ASKED, TensorRtConfig(compute_capabilities=("current",) if IS_RTX else ()))
    said = capsys.readouterr().out.splitlines()
    assert used.runtime == ("tensorrt" if supported else "torch")
    assert len(said) == (0 if supported else 1)
