"""Every network is proved against torch where it is opened, and run in a safer precision where that fails."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.runtime import opening
from engine.runtime.opening import open_runtime
from engine.runtime.place import Place
from export import parity
from export.errors import ExportError, RuntimeUnavailableError
from export.parity import compare, reference
from export.spec import Input, NetworkSpec, batch
from export.store import Store
from tests.places import torch_place


class Amplified(nn.Module):
    """A GroupNorm of activations that are too large for fp16 from a gain of some 20,000 on."""

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


def place(folder: Path, said: list[str], **changes: object) -> Place:
    store = Store(folder, say=said.append)
    settings = {"runtime": "onnxruntime", "precision": "fp16", "store": store, "say": said.append}
    return torch_place(**{**settings, **changes})


def test_fp16_that_holds_the_network_is_taken(tmp_path: Path) -> None:
    said: list[str] = []
    executable = open_runtime(amplified(1.0), place(tmp_path, said))
    assert not [line for line in said if "taking" in line]
    inputs = amplified(1.0).example()
    torch.testing.assert_close(
        executable(**inputs)["y"], reference(amplified(1.0), inputs)["y"], rtol=0, atol=5e-3
    )


def test_activations_beyond_fp16_are_caught_and_run_in_fp32_aloud(tmp_path: Path) -> None:
    said: list[str] = []
    spec = amplified(1e6)
    executable = open_runtime(spec, place(tmp_path, said))
    assert "amplified: onnxruntime fp16 gives numbers that are not finite; taking fp32" in said
    inputs = spec.example({"batch": 3})
    torch.testing.assert_close(executable(**inputs)["y"], reference(spec, inputs)["y"], rtol=1e-4, atol=1e-4)


def test_torch_is_proved_as_well(tmp_path: Path) -> None:
    said: list[str] = []
    spec = amplified(1e6)
    inputs = spec.example({"batch": 3})
    wanted = reference(spec, inputs)
    executable = open_runtime(spec, place(tmp_path, said, runtime="torch"))
    assert said == ["amplified: torch fp16 gives numbers that are not finite; taking bf16"]
    assert compare(wanted, executable(**inputs), "bf16").passes
    open_runtime(amplified(1.0), place(tmp_path, said, runtime="torch"))
    assert len(said) == 1


def test_torch_that_holds_in_float32_alone_ends_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "TOLERANCE", {"fp32": 0.0, "bf16": 0.0, "fp16": 0.0})
    said: list[str] = []
    spec = amplified(1.0)
    inputs = spec.example()
    executable = open_runtime(spec, place(tmp_path, said, runtime="torch"))
    assert [line.rpartition("; ")[2] for line in said] == ["taking bf16", "taking fp32"]
    assert torch.equal(executable(**inputs)["y"], reference(spec, inputs)["y"])


def test_the_proof_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    open_runtime(amplified(1.0), place(tmp_path, said))
    assert "amplified: measuring onnxruntime_parity fp16 for the first time" in said

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(opening, "compare", never)
    open_runtime(amplified(1.0), place(tmp_path, said))
    with pytest.raises(AssertionError, match="measured again"):
        open_runtime(amplified(2.0), place(tmp_path, said))


def test_a_proof_against_another_reference_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that was kept when the reference was rounded to TF32."""
    said: list[str] = []
    open_runtime(amplified(1.0), place(tmp_path, said))
    monkeypatch.setattr(opening, "files_hash", lambda _: "another")
    open_runtime(amplified(1.0), place(tmp_path, said))
    assert sum("onnxruntime_parity" in line for line in said) == 2


def test_a_network_that_no_precision_reproduces_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "reference", lambda *_: {"y": torch.ones(2, 4, 6, 6)})
    with pytest.raises(ExportError, match=r"amplified: onnxruntime fp32 gives relative error .* torch"):
        open_runtime(amplified(1.0), place(tmp_path, []))


def test_tensorrt_without_a_gpu_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said: list[str] = []
    here = torch_place(runtime="tensorrt", precision="fp16", store=Store(tmp_path, say=said.append))
    with pytest.raises(RuntimeUnavailableError, match="no GPU here"):
        open_runtime(amplified(1.0), here)
    assert not said
