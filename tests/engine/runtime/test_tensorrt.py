"""The TensorRT runtime: engines on a GPU, and with fakes what needs none."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.runtime import tensorrt
from engine.runtime.tensorrt import (
    TensorRtExecutable,
    bind,
    enqueue,
    load_compiled,
    require_gpu,
    save_compiled,
)
from export.errors import ExportError, RuntimeUnavailableError
from export.onnx import FILE, write_onnx
from export.spec import Axis, Input, NetworkSpec
from export.tensorrt.options import FILE as ENGINE
from export.tensorrt.options import BuildOptions

BATCH = Axis(name="batch", min=2, opt=3, max=4)
SIDES = [Axis(name=name, min=8, opt=16, max=32) for name in ("height", "width")]
NO_GPU = (
    "tensorrt: this machine has no GPU; it can build engines (python -m export --runtime tensorrt) but"
    " not run them; use a machine with an NVIDIA GPU, or --runtime openvino"
)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.conv(images)) * scale
        return hidden, hidden.mean((2, 3))


@pytest.fixture(scope="module")
def spec() -> NetworkSpec:
    torch.manual_seed(0)
    return NetworkSpec(
        name="scaled",
        module=Scaled().eval(),
        inputs=(Input(name="images", shape=(BATCH, 3, *SIDES)), Input(name="scale", shape=(1,), values=3.0)),
        outputs=("hidden", "pooled"),
    )


def test_a_missing_gpu_is_reported_first(
    spec: NetworkSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for use in (
        require_gpu,
        lambda: TensorRtExecutable(spec, b"", torch.device("cuda"), compiled_file=tmp_path / "c"),
    ):
        with pytest.raises(RuntimeUnavailableError) as error:
            use()
        assert str(error.value) == NO_GPU


class FakeContext:
    """Notes its arguments; its outputs are one wider than its input."""

    def __init__(self, *, succeeds: bool = True) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.succeeds = succeeds

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.succeeds

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (*self.shapes["x"][:-1], self.shapes["x"][-1] + 1)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 7
        return self.succeeds


class FakeStream:
    cuda_stream = 7


def test_a_context_is_given_the_memory_of_the_tensors() -> None:
    context: Any = FakeContext()
    inputs = {"x": torch.randn(2, 3), "time": torch.tensor([1.0])}
    outputs = bind(context, inputs, ("y",))
    assert context.shapes == {"x": (2, 3), "time": (1,)}
    assert outputs["y"].shape == (2, 4)
    assert outputs["y"].dtype == torch.float32
    assert context.addresses == {name: value.data_ptr() for name, value in {**inputs, **outputs}.items()}


def test_a_failing_context_is_an_error() -> None:
    pytest.importorskip("tensorrt_rtx")
    context: Any = FakeContext(succeeds=False)
    stream: Any = FakeStream()
    with pytest.raises(ExportError, match=r"x failed: .*; choose another --runtime"):
        bind(context, {"x": torch.zeros(2, 3)}, ("y",))
    with pytest.raises(ExportError, match=r"execution failed"):
        enqueue(context, stream)


@pytest.fixture(scope="module")
def engine(spec: NetworkSpec, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an engine for this GPU or, without one, for the GPUs that TensorRT-RTX builds for."""
    pytest.importorskip("tensorrt_rtx")
    from export.tensorrt.bindings import IS_RTX, trt
    from export.tensorrt.builder import build_engine

    options = BuildOptions()
    if torch.cuda.is_available() and IS_RTX:
        major, minor = torch.cuda.get_device_capability()
        if f"SM{major}{minor}" not in trt.ComputeCapability.__members__:
            pytest.skip(f"TensorRT-RTX does not build for compute capability {major}.{minor}")
        options = BuildOptions(compute_capabilities=("current",))
    folder = tmp_path_factory.mktemp("engine")
    write_onnx(spec, "fp16", folder)
    build_engine(folder / FILE, folder / ENGINE, spec.shapes(), options, lambda *_: None)
    return (folder / ENGINE).read_bytes()


def opened(
    spec: NetworkSpec, engine: bytes, kernels: Path, *, cuda_graph: bool = False
) -> TensorRtExecutable:
    device = torch.device("cuda")
    return TensorRtExecutable(spec, engine, device, compiled_file=kernels, cuda_graph=cuda_graph)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what a machine without a GPU can")
def test_opening_the_engine_fails_only_for_lack_of_a_gpu(
    spec: NetworkSpec, engine: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is real; opening it as on a GPU gets as far as TensorRT's own query of the device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr("export.tensorrt.loading._gpu", lambda: "no GPU")
    assert len(engine) > 1000
    with pytest.raises(RuntimeUnavailableError, match=r"cannot run the engine on no GPU: .*CUDA driver"):
        opened(spec, engine, tmp_path / "kernels")


@pytest.fixture(params=[False, True], ids=["direct", "cuda graph"])
def executable(
    request: pytest.FixtureRequest, spec: NetworkSpec, engine: bytes, tmp_path: Path
) -> TensorRtExecutable:
    return opened(spec, engine, tmp_path / "kernels", cuda_graph=request.param)


def expected(spec: NetworkSpec, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        outputs = spec.module(*(inputs[given.name].cpu() for given in spec.inputs))
    return {name: value.cuda() for name, value in spec.named(outputs).items()}


def example(spec: NetworkSpec, *, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    return {name: value.cuda() for name, value in spec.example(sizes, seed=seed).items()}


@pytest.mark.gpu
def test_outputs_equal_torchs_for_every_batch_and_resolution(
    executable: TensorRtExecutable, spec: NetworkSpec
) -> None:
    for seed, batch, height in ((0, 1, 8), (1, 2, 16), (2, 4, 32), (3, 11, 16), (4, 2, 16)):
        inputs = example(spec, seed=seed, batch=batch, height=height)
        outputs = executable(**inputs)
        assert list(outputs) == ["hidden", "pooled"]
        for name, wanted in expected(spec, inputs).items():
            torch.testing.assert_close(outputs[name], wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_it_is_ordered_with_the_stream_of_the_caller(
    executable: TensorRtExecutable, spec: NetworkSpec
) -> None:
    inputs = example(spec, batch=4, height=32, width=32)
    wanted = expected(spec, inputs)["pooled"]
    with torch.cuda.stream(torch.cuda.Stream()):
        late = torch.zeros_like(inputs["images"])
        torch.cuda._sleep(50_000_000)
        late.copy_(inputs["images"])
        pooled = executable(images=late, scale=inputs["scale"])["pooled"] * 1
        late.fill_(torch.nan)
        torch.testing.assert_close(pooled, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_outputs_outlive_the_next_call(executable: TensorRtExecutable, spec: NetworkSpec) -> None:
    first, second = (example(spec, seed=seed, batch=4) for seed in (0, 1))
    kept = executable(**first)["hidden"]
    executable(**second)
    torch.testing.assert_close(kept, expected(spec, first)["hidden"], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_more_shapes_than_graphs_are_kept(
    executable: TensorRtExecutable, spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "MAX_GRAPHS", 2)
    for height in (8, 16, 24, 8):
        inputs = example(spec, batch=2, height=height)
        pooled = executable(**inputs)["pooled"]
        torch.testing.assert_close(pooled, expected(spec, inputs)["pooled"], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_compiled_kernels_are_kept_for_the_next_process(
    spec: NetworkSpec, engine: bytes, tmp_path: Path
) -> None:
    from export.tensorrt.bindings import IS_RTX

    file = tmp_path / "kernels"
    inputs = example(spec, batch=4)
    first = opened(spec, engine, file)
    wanted = first(**inputs)["hidden"]
    assert file.exists() == IS_RTX
    again = opened(spec, engine, file)
    assert torch.equal(again(**inputs)["hidden"], wanted)


def test_saved_kernels_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "kernels.bin"
    assert load_compiled(path) is None
    save_compiled(path, b"first")
    save_compiled(path, b"second")
    assert load_compiled(path) == b"second"


@pytest.mark.parametrize("at", [0, 31, 32, -1])
def test_altered_kernels_are_not_loaded(tmp_path: Path, at: int) -> None:
    path = tmp_path / "kernels.bin"
    save_compiled(path, b"kernels")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert load_compiled(path) is None


@pytest.mark.parametrize("length", [0, 10, 35])
def test_truncated_kernels_are_not_loaded(tmp_path: Path, length: int) -> None:
    path = tmp_path / "kernels.bin"
    save_compiled(path, b"kernels")
    path.write_bytes(path.read_bytes()[:length])
    assert load_compiled(path) is None
