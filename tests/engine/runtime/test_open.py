"""Opening a network checks its parity with torch, and falls back to a safer precision if that fails."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.runtime import open as opening
from engine.runtime.artifacts import Graph
from engine.runtime.base import RuntimeOptions, refusals
from engine.runtime.open import open_runtime
from export import parity
from export.errors import ExportError, RuntimeUnavailableError
from export.parity import compare, reference
from export.spec import Input, NetworkSpec, batch
from export.store import Store
from tests.logs import log_lines, record_info
from tests.runtime_options import torch_options


class Amplified(nn.Module):
    """A GroupNorm whose input overflows fp16 if the gain exceeds about 20,000."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(4, 8, 3), nn.GroupNorm(4, 8), nn.Conv2d(8, 4, 1)
        self.gain = gain

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.last(torch.relu(self.norm(self.conv(images) * self.gain))),)


def amplified(gain: float) -> NetworkSpec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Amplified(gain).eval().requires_grad_(False)
    images = Input(name="images", shape=(batch((1, 2, 4)), 4, 8, 8))
    return NetworkSpec(name="amplified", module=module, inputs=(images,), outputs=("y",))


@pytest.fixture(autouse=True)
def _record_info(caplog: pytest.LogCaptureFixture) -> None:
    record_info(caplog)


def options(folder: Path, **changes: object) -> RuntimeOptions:
    settings = {"runtime": "onnxruntime", "precision": "fp16", "store": Store(folder)}
    return torch_options(**{**settings, **changes})


def test_fp16_is_used_if_it_reproduces_the_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    executable = open_runtime(amplified(1.0), options(tmp_path))
    assert not [line for line in log_lines(caplog) if "falling back" in line]
    inputs = amplified(1.0).example()
    torch.testing.assert_close(
        executable(**inputs)["y"], reference(amplified(1.0), inputs)["y"], rtol=0, atol=5e-3
    )


def test_activations_beyond_fp16_run_in_fp32_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = amplified(1e6)
    executable = open_runtime(spec, options(tmp_path))
    assert "amplified: onnxruntime fp16 gives numbers that are not finite; falling back to fp32" in log_lines(
        caplog
    )
    inputs = spec.example({"batch": 3})
    torch.testing.assert_close(executable(**inputs)["y"], reference(spec, inputs)["y"], rtol=1e-4, atol=1e-4)


def test_torch_is_checked_as_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = amplified(1e6)
    inputs = spec.example({"batch": 3})
    wanted = reference(spec, inputs)
    executable = open_runtime(spec, options(tmp_path, runtime="torch"))
    assert log_lines(caplog) == [
        "amplified: torch fp16 gives numbers that are not finite; falling back to bf16"
    ]
    assert compare(wanted, executable(**inputs), "bf16").passes
    open_runtime(amplified(1.0), options(tmp_path, runtime="torch"))
    assert len(log_lines(caplog)) == 1


def test_torch_falls_back_to_float32_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parity, "TOLERANCE", {"fp32": 0.0, "bf16": 0.0, "fp16": 0.0})
    spec = amplified(1.0)
    inputs = spec.example()
    executable = open_runtime(spec, options(tmp_path, runtime="torch"))
    assert [line.rpartition("; ")[2] for line in log_lines(caplog)] == [
        "falling back to bf16",
        "falling back to fp32",
    ]
    assert torch.equal(executable(**inputs)["y"], reference(spec, inputs)["y"])


def test_parity_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_runtime(amplified(1.0), options(tmp_path))
    assert "amplified: measuring onnxruntime_parity fp16 for the first time" in log_lines(caplog)

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(opening, "compare", never)
    open_runtime(amplified(1.0), options(tmp_path))
    with pytest.raises(AssertionError, match="measured again"):
        open_runtime(amplified(2.0), options(tmp_path))


def test_parity_with_another_reference_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For instance, one that was stored when the reference was rounded to TF32."""
    open_runtime(amplified(1.0), options(tmp_path))
    monkeypatch.setattr(opening, "files_hash", lambda _: "another")
    open_runtime(amplified(1.0), options(tmp_path))
    assert sum("onnxruntime_parity" in line for line in log_lines(caplog)) == 2


def test_a_network_that_no_precision_reproduces_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "reference", lambda *_: {"y": torch.ones(2, 4, 6, 6)})
    with pytest.raises(ExportError, match=r"amplified: onnxruntime fp32 gives relative error .* torch"):
        open_runtime(amplified(1.0), options(tmp_path))


def test_tensorrt_without_a_gpu_is_rejected_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = options(tmp_path, runtime="tensorrt")
    with pytest.raises(RuntimeUnavailableError, match="this machine has no GPU"):
        open_runtime(amplified(1.0), settings)
    assert not log_lines(caplog)


class Pooled(nn.Module):
    """A pooling whose last window hangs over the edge: of a single pixel, OpenVINO cannot make one."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.pool(images),)


def pooled() -> NetworkSpec:
    images = Input(name="images", shape=(batch((1, 2, 4)), 3, 1, 1))
    return NetworkSpec(name="pooled", module=Pooled().eval(), inputs=(images,), outputs=("y",))


WAY_OUT = "choose another --runtime, or check the image size"


def test_a_network_that_openvino_cannot_convert_is_one_line(tmp_path: Path) -> None:
    reason = (
        "Kernel after dilation has size (dim: 2) larger than the data shape after padding (dim: 1) at axis 0"
    )
    with pytest.raises(ExportError) as raised:
        open_runtime(pooled(), options(tmp_path, runtime="openvino", precision="fp32"))
    assert str(raised.value) == f"pooled: openvino refuses the network: {reason}; {WAY_OUT}"


def test_a_graph_that_onnxruntime_cannot_open_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(ExportError) as raised:
        opening.open_graph(pooled(), Graph(file, "digest"), options(tmp_path / "store", precision="fp32"))
    assert str(raised.value).startswith("pooled: onnxruntime refuses the network: ")
    assert str(raised.value).endswith(WAY_OUT)
    assert "\n" not in str(raised.value)


def test_a_network_that_inductor_cannot_compile_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*_: object, **__: object) -> None:
        raise RuntimeError(
            "backend='inductor' raised:\nCppCompileError: no compiler\n\nSet TORCHDYNAMO_VERBOSE=1"
        )

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    executable = open_runtime(pooled(), options(tmp_path, runtime="torch", precision="fp32", compiled=True))
    line = (
        "pooled: torch.compile refuses the network: CppCompileError: no compiler; use --compute.compile false"
    )
    with pytest.raises(ExportError) as raised:
        executable(**pooled().example())
    assert str(raised.value) == line


@pytest.mark.parametrize("error", [MemoryError("bad_alloc"), OSError(28, "No space left on device")])
def test_too_little_memory_and_a_full_disk_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, refusals("pooled", "openvino"):
        raise error
    assert raised.value is error
