"""On a GPU that TensorRT does not support, torch replaces it with a warning."""

import sys
from types import SimpleNamespace

import pytest
import torch

from engine.cli.resolve import with_torch_fallback
from engine.config.compute import ComputeConfig
from engine.config.tensorrt import TensorRtConfig
from export.errors import ExportError, RuntimeUnavailableError

CONFIG = ComputeConfig(
    device="cpu", precision="bf16", runtime="tensorrt", runtime_precision="fp16", threads=2
)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages that engine.cli.resolve has logged."""
    return [record.getMessage() for record in caplog.records if record.name == "engine.cli.resolve"]


def test_an_engine_that_does_not_load_is_replaced_by_torch_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorrt_rtx")
    built: list[int] = []

    def refuse(blob: bytes, **_: object) -> None:
        built.append(len(blob))
        raise RuntimeUnavailableError("the engine was not built for compute capability 9.0")

    monkeypatch.setattr("export.tensorrt.loading.load_engine", refuse)
    resolved = with_torch_fallback(CONFIG, TensorRtConfig())
    lines = warnings(caplog)
    assert built[0] > 1000, "a real engine was built"
    assert (resolved.runtime, resolved.runtime_precision, resolved.compile) == ("torch", "bf16", True)
    assert lines == [
        "the engine was not built for compute capability 9.0;"
        " using torch for the frozen networks instead, compiled, with CUDA graphs"
    ]


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("set_compute_capability", TensorRtConfig(compute_capabilities=("current",))),
        ("build_serialized_network", TensorRtConfig(compute_capabilities=("current",))),
        ("build_serialized_network", TensorRtConfig(refit="stripped")),
    ],
)
def test_a_gpu_that_no_engine_is_built_for_is_replaced_by_torch_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, method: str, config: TensorRtConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """As with TensorRT-RTX on an H100, the builder rejects the GPU or builds nothing."""
    pytest.importorskip("tensorrt_rtx")
    from export.tensorrt import targets
    from export.tensorrt.bindings import LOGGER, trt

    def refused(*_: object) -> None:
        LOGGER.log(trt.ILogger.Severity.ERROR, "SM 90 is not supported")

    owner = {"set_compute_capability": trt.IBuilderConfig, "build_serialized_network": trt.Builder}[method]
    monkeypatch.setattr(owner, method, refused)
    monkeypatch.setattr(targets, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True)))
    resolved = with_torch_fallback(CONFIG, config)
    lines = warnings(caplog)
    assert resolved.runtime == "torch"
    assert len(lines) == 1
    assert "SM 90 is not supported" in lines[0]
    assert lines[0].endswith("using torch for the frozen networks instead, compiled, with CUDA graphs")


def test_options_that_no_build_accepts_stay_errors() -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(ExportError, match=r"cannot build for compute capability 9\.7, only for"):
        with_torch_fallback(CONFIG, TensorRtConfig(compute_capabilities=(9.7,)))


def test_a_missing_package_stays_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("export.tensorrt")]:
        monkeypatch.delitem(sys.modules, name)
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delattr("export.tensorrt")
    with pytest.raises(RuntimeUnavailableError, match="pip install 'dda-engine\\[trt\\]'"):
        with_torch_fallback(CONFIG, TensorRtConfig())


@pytest.mark.gpu
def test_this_gpu_runs_tensorrt_if_it_is_a_target(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorrt_rtx")
    from export.tensorrt.bindings import IS_RTX, trt

    major, minor = torch.cuda.get_device_capability()
    supported = not IS_RTX or f"SM{major}{minor}" in trt.ComputeCapability.__members__
    resolved = with_torch_fallback(
        CONFIG, TensorRtConfig(compute_capabilities=("current",) if IS_RTX else ())
    )
    lines = warnings(caplog)
    assert resolved.runtime == ("tensorrt" if supported else "torch")
    assert len(lines) == (0 if supported else 1)
