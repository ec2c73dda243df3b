"""ONNX Runtime on a GPU: the device, the providers and TensorRT's engine cache."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.runtime import artifacts
from engine.runtime.onnxruntime import OnnxExecutable
from engine.runtime.open import open_graph
from export.errors import RuntimeUnavailableError
from export.parity import compare, reference
from export.spec import NetworkSpec
from export.store import Store
from tests.engine.runtime.conditioned import conditioned_spec
from tests.logs import log_lines, record_info
from tests.runtime_options import torch_options


@pytest.fixture(scope="module")
def spec() -> NetworkSpec:
    return conditioned_spec()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("engines"))


class Recorded:
    """A fake ONNX Runtime session with its binding, on a second GPU; records the calls."""

    def __init__(self, _path: Path, _options: object, providers: list[tuple[str, dict[str, str]]]) -> None:
        ((self.provider, self.options),) = providers
        self.bound: list[tuple[Any, ...]] = []
        self.rows: list[int] = []

    def io_binding(self) -> "Recorded":
        return self

    def bind_input(self, name: str, *arguments: Any) -> None:
        self.bound.append((name, *arguments[:2]))
        if name == "images":
            self.rows.append(arguments[3][0])

    def bind_output(self, *arguments: Any) -> None:
        self.bound.append(arguments)

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
def test_onnxruntime_runs_on_the_gpu_of_the_options(
    spec: NetworkSpec, store: Store, second_gpu: torch.device, provider: str
) -> None:
    """Check only the arguments of the session and its binding: their effect takes two GPUs."""
    options = torch_options(runtime="onnxruntime", store=store, device=second_gpu, onnx_provider=provider)
    executable = OnnxExecutable(spec, artifacts.graph(spec, options), options)
    executable(**spec.example({"batch": 3}))
    session: Any = executable._session
    assert session.options["device_id"] == "1"
    if provider == "cuda":
        assert session.options["use_tf32"] == "0"
    names = ["images", "shift", "hidden", "logits"]
    assert session.bound == [(name, "cuda", 1) for name in names]


def test_the_tensorrt_provider_caches_engines_and_gets_batches_of_its_profile(
    spec: NetworkSpec, tmp_path: Path, second_gpu: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    """Check only the arguments of the session: just onnxruntime-gpu builds engines."""
    record_info(caplog)
    store = Store(tmp_path)
    settings = {"runtime": "onnxruntime", "onnx_provider": "tensorrt", "device": second_gpu}
    options = torch_options(store=store, **settings)
    graph = artifacts.graph(spec, options)
    caplog.clear()
    executable = OnnxExecutable(spec, graph, options)
    session: Any = executable._session
    folder = Path(session.options["trt_engine_cache_path"])
    assert session.options["trt_engine_cache_enable"] == "True"
    assert folder.parent == tmp_path / ".beside" / graph.path.parent.name
    assert log_lines(caplog) == [
        f"conditioned: onnxruntime builds a TensorRT engine at the first call, kept in {folder}"
    ]
    given = executable(**spec.example({"batch": 150}))
    assert session.rows == [64, 64, 22]
    assert torch.equal(given["hidden"][:, 0], torch.arange(150.0))
    assert torch.equal(given["logits"][:, 0], -torch.arange(150.0))
    (folder / "an.engine").write_bytes(b"engine")
    OnnxExecutable(spec, graph, options)
    assert len(log_lines(caplog)) == 1


def test_a_missing_provider_is_one_line(spec: NetworkSpec, store: Store) -> None:
    import onnxruntime

    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this package has it")
    options = torch_options(runtime="onnxruntime", store=store, onnx_provider="tensorrt")
    with pytest.raises(RuntimeUnavailableError, match="no TensorrtExecutionProvider; pip install"):
        open_graph(spec, artifacts.graph(spec, options), options)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_on_the_gpu(spec: NetworkSpec, store: Store, precision: str) -> None:
    pytest.importorskip("onnxruntime")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime without CUDA")
    options = torch_options(
        runtime="onnxruntime", precision=precision, store=store, device=torch.device("cuda")
    )
    executable = open_graph(spec, artifacts.graph(spec, options), options)
    inputs = spec.example({"batch": 7})
    given = executable(**{name: value.cuda() for name, value in inputs.items()})
    assert compare(reference(spec, inputs), given, precision).passes
