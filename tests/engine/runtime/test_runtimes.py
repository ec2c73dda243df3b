"""OpenVINO and ONNX Runtime against torch: values, any batch, what is kept, what is refused."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from engine.runtime import artifacts
from engine.runtime.executable import Executable
from engine.runtime.onnxruntime import OnnxExecutable
from engine.runtime.opening import open_graph, open_runtime
from engine.runtime.openvino import OpenVinoExecutable
from engine.runtime.torch import TorchExecutable
from engine.stages.micro_batch import MicroBatch
from export.errors import ExportError, RuntimeUnavailableError
from export.parity import TOLERANCE, compare, reference
from export.sealed import seal
from export.spec import Axis, Input, NetworkSpec
from export.store import Store
from tests.places import torch_place
from tests.rounding import Rounding, as_torch_rounds, rounding, rounding_spec

CHUNK = 4
BATCH = Axis(name="batch", min=1, opt=CHUNK, max=64)
SIDES = [Axis(name=name, min=8, opt=16, max=32) for name in ("height", "width")]


class Conditioned(nn.Module):
    """Two outputs, a normalization, and an input without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, images: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.norm(self.conv(images)) + shift[:, :, None, None])
        return hidden, self.head(hidden.mean((2, 3)))


@pytest.fixture(scope="module")
def spec() -> NetworkSpec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Conditioned().eval().requires_grad_(False)
    inputs = (Input(name="images", shape=(BATCH, 3, *SIDES)), Input(name="shift", shape=(1, 8)))
    return NetworkSpec(name="conditioned", module=module, inputs=inputs, outputs=("hidden", "logits"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("engines"), say=lambda _: None)


def opened(spec: NetworkSpec, store: Store, runtime: str, precision: str) -> Executable:
    place = torch_place(runtime=runtime, precision=precision, store=store)
    return open_graph(spec, artifacts.graph(spec, place), place)


OPENED = [
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "fp16"),
]


@pytest.mark.parametrize(("runtime", "precision"), OPENED)
@pytest.mark.parametrize("rows", [1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
def test_any_batch_gives_what_torch_gives(
    spec: NetworkSpec, store: Store, runtime: str, precision: str, rows: int
) -> None:
    if (runtime, precision) == ("openvino", "bf16"):
        require_bf16()
    inputs = spec.example({"batch": rows}, seed=rows)
    given = opened(spec, store, runtime, precision)(**inputs)
    wanted = reference(spec, inputs)
    assert {name: value.shape for name, value in given.items()} == {n: v.shape for n, v in wanted.items()}
    assert all(value.dtype == torch.float32 for value in given.values())
    found = compare(wanted, given, precision)
    assert found.relative_error <= TOLERANCE[precision]
    assert found.cosine > 0.999, "the rows are in order"


def require_bf16() -> None:
    from engine.compute import BF16_INSTRUCTIONS
    from kernels import cpu_features

    if not BF16_INSTRUCTIONS.intersection(cpu_features()):
        pytest.skip("this processor has no bf16")


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_another_resolution_within_the_range_is_compiled_for(
    spec: NetworkSpec, store: Store, runtime: str
) -> None:
    executable = opened(spec, store, runtime, "fp32")
    for height, width in ((8, 32), (16, 16), (31, 9)):
        inputs = spec.example({"batch": 3, "height": height, "width": width})
        assert compare(reference(spec, inputs), executable(**inputs), "fp32").passes


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_resolution_outside_the_range_is_one_line(spec: NetworkSpec, store: Store, runtime: str) -> None:
    inputs = spec.example({"batch": 1, "height": 40})
    with pytest.raises(ExportError, match=r"images has shape \[1, 3, 40, 16\].*height 8 to 32"):
        opened(spec, store, runtime, "fp32")(**inputs)


def test_torch_autocasts_and_answers_in_float32(spec: NetworkSpec) -> None:
    inputs = spec.example({"batch": 3})
    wanted = reference(spec, inputs)
    exact = TorchExecutable(spec, "fp32", torch.device("cpu"))(**inputs)
    assert all(torch.equal(exact[name], wanted[name]) for name in wanted)
    rounded = TorchExecutable(spec, "bf16", torch.device("cpu"))(**inputs)
    found = compare(wanted, rounded, "bf16")
    assert found.passes
    assert found.relative_error > 1e-5, "autocast was on"
    assert all(value.dtype == torch.float32 for value in rounded.values())


@as_torch_rounds()
@pytest.mark.parametrize(("precision", "inside"), [("fp32", "ieee"), ("bf16", "tf32")])
def test_torch_in_fp32_is_not_rounded_to_tf32(precision: str, inside: str) -> None:
    """In bf16 the setting, which is the process's, stays as it is."""
    module, before = Rounding(), rounding()
    TorchExecutable(rounding_spec(module), precision, torch.device("cpu"))(x=torch.zeros(2, 3))
    assert module.seen[0][0] == inside
    assert rounding() == before


class Counted:
    """`torch.compile` without inductor; counts what it would compile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch._dynamo.testing import CompileCounter

        self.counter, compile_it = CompileCounter(), torch.compile
        torch._dynamo.reset()

        def counted(module: nn.Module, *, dynamic: bool, **_: str) -> Any:
            return compile_it(module, backend=self.counter, dynamic=dynamic)

        monkeypatch.setattr(torch, "compile", counted)

    @property
    def times(self) -> int:
        return self.counter.frame_count


def check_rows(spec: NetworkSpec, executable: TorchExecutable, sizes: list[int]) -> None:
    for count in sizes:
        inputs = spec.example({"batch": count}, seed=count)
        given, wanted = executable(**inputs), reference(spec, inputs)
        assert {name: len(value) for name, value in given.items()} == {"hidden": count, "logits": count}
        assert compare(wanted, given, "fp32").passes


def test_torch_compiles_once_for_batches_up_to_the_tuned_one(
    spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Counted(monkeypatch)
    executable = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    check_rows(spec, executable, [1, CHUNK, CHUNK - 1, 2, CHUNK])
    assert compiled.times == 1


def test_torch_compiles_again_for_a_larger_batch_and_fills_up_to_that_from_then_on(
    spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Counted(monkeypatch)
    executable = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    check_rows(spec, executable, [CHUNK, 3 * CHUNK, CHUNK, 2 * CHUNK + 1])
    assert compiled.times == 2


def test_batches_that_memory_halved_are_not_filled_up_to_what_it_did_not_hold(
    spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Counted(monkeypatch)
    executable = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    inputs = spec.example({"batch": 7})
    ran: list[int] = []

    def too_small(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        ran.append(len(given[0]))
        if len(given[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def run(piece: slice) -> Tensor:
        return executable(images=inputs["images"][piece], shift=inputs["shift"])["logits"]

    executable._forward, forward = spec.module, executable._forward  # hooks break the graph
    with spec.module.register_forward_pre_hook(too_small):
        logits = torch.cat(list(MicroBatch("augment", CHUNK).over(7, run)))
    assert ran == [CHUNK, 2, 2, 2, 2]
    torch.testing.assert_close(logits, reference(spec, inputs)["logits"])
    executable._forward = forward
    check_rows(spec, executable, [2, 1])
    assert compiled.times == 1


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_that_memory_holds_without_its_padding_is_run(count: int, spec: NetworkSpec) -> None:
    executable = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    executable._forward = spec.module
    ran: list[int] = []

    def too_small(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        ran.append(len(given[0]))
        if len(given[0]) > count:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with spec.module.register_forward_pre_hook(too_small):
        check_rows(spec, executable, [count])
        check_rows(spec, executable, [1])
    assert ran == [CHUNK, count, count, count, 1]  # the second of each pair is the reference's


def test_padding_keeps_channels_last(spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Counted(monkeypatch)
    executable = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    for count in (CHUNK, 1, 2, CHUNK):
        inputs = spec.example({"batch": count})
        images = inputs["images"].to(memory_format=torch.channels_last)
        given = executable(images=images, shift=inputs["shift"])
        assert compare(reference(spec, inputs), given, "fp32").passes
    assert compiled.times == 1


def test_torch_that_is_not_compiled_takes_batches_as_they_are() -> None:
    module = Rounding()
    ran: list[int] = []
    module.register_forward_pre_hook(lambda _, given: ran.append(len(given[0])))
    executable = TorchExecutable(rounding_spec(module), "fp32", torch.device("cpu"))
    for count in (1, 5, 2):
        executable(x=torch.zeros(count, 3))
    assert ran == [1, 5, 2]


def test_a_compiled_model_is_taken_from_the_store(spec: NetworkSpec, tmp_path: Path) -> None:
    said: list[str] = []
    inputs = spec.example({"batch": 2})
    results = []
    for _ in range(2):
        with Store(tmp_path, say=said.append) as store:
            results.append(opened(spec, store, "openvino", "fp32")(**inputs)["logits"])
    assert torch.equal(*results)
    assert [line.split(" for the")[0] for line in said] == [
        "conditioned: building onnx fp32",
        "conditioned: building openvino fp32",
    ]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_graph_or_compiled_model_with_one_other_byte_is_refused(
    spec: NetworkSpec, tmp_path: Path, kind: str
) -> None:
    inputs = spec.example({"batch": 2})
    with Store(tmp_path, say=lambda _: None) as store:
        opened(spec, store, "openvino", "fp32")(**inputs)
    (file,) = (path for path in tmp_path.glob(f"conditioned-{kind}-*/model.*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)
    with Store(tmp_path, say=lambda _: None) as store, pytest.raises(ExportError, match=str(file.parent)):
        opened(spec, store, "openvino", "fp32")(**inputs)


def test_a_graph_in_the_store_that_reads_files_elsewhere_is_refused(
    spec: NetworkSpec, tmp_path: Path
) -> None:
    """Also where it was sealed by whoever wrote it: the seal has no secret."""
    folder = tmp_path / "store"
    with Store(folder, say=lambda _: None) as store:
        path = artifacts.graph(spec, torch_place(runtime="onnxruntime", store=store)).path
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    (path.parent / "weights").rename(tmp_path / "weights")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../weights"
    path.write_bytes(model.SerializeToString())
    card = path.parent / "entry.json"
    key = json.loads(card.read_text())["key"]
    card.unlink()
    seal(path.parent, key)
    with Store(folder, say=lambda _: None) as store:
        for runtime in ("onnxruntime", "openvino"):
            with pytest.raises(ExportError, match=r"point to '../../weights', outside the graph's folder"):
                open_runtime(spec, torch_place(runtime=runtime, store=store))


class Recorded:
    """An ONNX Runtime session and its binding on a second GPU that is not there; notes what it is asked."""

    def __init__(self, _path: Path, _options: object, providers: list[tuple[str, dict[str, str]]]) -> None:
        ((self.provider, self.options),) = providers
        self.bound: list[tuple[Any, ...]] = []
        self.rows: list[int] = []

    def io_binding(self) -> "Recorded":
        return self

    def bind_input(self, name: str, *asked: Any) -> None:
        self.bound.append((name, *asked[:2]))
        if name == "images":
            self.rows.append(asked[3][0])

    def bind_output(self, *asked: Any) -> None:
        self.bound.append(asked)

    def run_with_iobinding(self, binding: "Recorded") -> None:
        assert binding is self

    def get_outputs(self) -> list[SimpleNamespace]:
        first = sum(self.rows[:-1])
        column = torch.arange(first, first + self.rows[-1], dtype=torch.float32)[:, None]
        return [SimpleNamespace(_ortvalue=column), SimpleNamespace(_ortvalue=-column)]


@pytest.fixture
def second_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    import onnxruntime

    providers = ["CUDAExecutionProvider", "TensorrtExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    return torch.device("cuda", 1)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_onnxruntime_is_asked_for_the_gpu_of_the_place(
    spec: NetworkSpec, store: Store, second_gpu: torch.device, provider: str
) -> None:
    """What the session and its binding are told, not what they do with it: that takes two GPUs."""
    place = torch_place(runtime="onnxruntime", store=store, device=second_gpu, onnx_provider=provider)
    executable = OnnxExecutable(spec, artifacts.graph(spec, place), place)
    executable(**spec.example({"batch": 3}))
    session: Any = executable._session
    assert session.options["device_id"] == "1"
    if provider == "cuda":
        assert session.options["use_tf32"] == "0"
    names = ["images", "shift", "hidden", "logits"]
    assert session.bound == [(name, "cuda", 1) for name in names]


def test_onnxruntimes_tensorrt_keeps_its_engines_and_gets_batches_of_its_profile(
    spec: NetworkSpec, tmp_path: Path, second_gpu: torch.device
) -> None:
    """What the session is told; an engine is built by onnxruntime-gpu alone."""
    said: list[str] = []
    store = Store(tmp_path, say=lambda _: None)
    settings = {"runtime": "onnxruntime", "onnx_provider": "tensorrt", "device": second_gpu}
    place = torch_place(store=store, say=said.append, **settings)
    graph = artifacts.graph(spec, place)
    executable = OnnxExecutable(spec, graph, place)
    session: Any = executable._session
    folder = Path(session.options["trt_engine_cache_path"])
    assert session.options["trt_engine_cache_enable"] == "True"
    assert folder.parent == tmp_path / ".beside" / graph.path.parent.name
    assert said == [f"conditioned: onnxruntime builds a TensorRT engine at the first call, kept in {folder}"]
    given = executable(**spec.example({"batch": 150}))
    assert session.rows == [64, 64, 22]
    assert torch.equal(given["hidden"][:, 0], torch.arange(150.0))
    assert torch.equal(given["logits"][:, 0], -torch.arange(150.0))
    (folder / "an.engine").write_bytes(b"engine")
    OnnxExecutable(spec, graph, place)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("runtime", "precision", "words"),
    [
        ("openvino", "fp16", "openvino computes in fp32 or bf16 on a CPU, not in fp16"),
        ("onnxruntime", "bf16", "onnxruntime has no bf16 on a CPU; take --precision fp32"),
    ],
)
def test_a_precision_that_a_runtime_does_not_have_is_one_line(
    spec: NetworkSpec, store: Store, runtime: str, precision: str, words: str
) -> None:
    with pytest.raises(RuntimeUnavailableError, match=words):
        opened(spec, store, runtime, precision)


def test_openvino_reads_back_the_precision_it_computes_in(spec: NetworkSpec, store: Store) -> None:
    """A processor without bf16 takes the hint and computes in float32."""
    shapes = tuple(value.shape for value in spec.example({"batch": CHUNK}).values())
    in_fp32, in_bf16 = (opened(spec, store, "openvino", precision) for precision in ("fp32", "bf16"))
    assert isinstance(in_fp32, OpenVinoExecutable)
    assert isinstance(in_bf16, OpenVinoExecutable)
    with pytest.raises(RuntimeUnavailableError, match="asked for bf16 and computes in f32 here"):
        in_bf16._check_precision(in_fp32._compiled(shapes))


def test_a_provider_that_the_package_does_not_have_is_one_line(spec: NetworkSpec, store: Store) -> None:
    import onnxruntime

    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this package has it")
    place = torch_place(runtime="onnxruntime", store=store, onnx_provider="tensorrt")
    with pytest.raises(RuntimeUnavailableError, match="no TensorrtExecutionProvider; pip install"):
        open_graph(spec, artifacts.graph(spec, place), place)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_on_the_gpu(spec: NetworkSpec, store: Store, precision: str) -> None:
    pytest.importorskip("onnxruntime")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime without CUDA")
    place = torch_place(runtime="onnxruntime", precision=precision, store=store, device=torch.device("cuda"))
    executable = open_graph(spec, artifacts.graph(spec, place), place)
    inputs = spec.example({"batch": 7})
    given = executable(**{name: value.cuda() for name, value in inputs.items()})
    assert compare(reference(spec, inputs), given, precision).passes


@pytest.mark.slow
def test_inductor_gives_what_eager_gives(spec: NetworkSpec) -> None:
    inputs = spec.example({"batch": 3})
    compiled = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    assert compare(reference(spec, inputs), compiled(**inputs), "fp32").passes


def test_what_the_numbers_depend_on_is_told(spec: NetworkSpec, store: Store) -> None:
    assert opened(spec, store, "openvino", "fp32").description.startswith("openvino 20")
    assert opened(spec, store, "onnxruntime", "fp32").description.endswith("on CPUExecutionProvider")


def test_openvino_computes_in_bf16_from_the_fp32_graph(spec: NetworkSpec, store: Store) -> None:
    places = [torch_place(runtime="openvino", precision=p, store=store) for p in ("bf16", "fp32")]
    assert len({artifacts.graph(spec, place).path for place in places}) == 1


CORES_THAT_END = """
import gc, signal
import numpy as np
import openvino
from openvino import opset13
from engine.runtime.openvino import core
door = opset13.parameter([1], np.float32)
model = openvino.Model([opset13.relu(door)], [door])
open_ones = [(each, each.compile_model(model, "CPU")) for each in (core(), core())]
while open_ones:
    del open_ones[0]
    gc.collect()
signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_after_openvino_is_no_segmentation_fault() -> None:
    command = [sys.executable, "-X", "faulthandler", "-c", CORES_THAT_END]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt")
    assert ended.returncode == -signal.SIGINT
