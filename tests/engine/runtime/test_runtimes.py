"""OpenVINO and ONNX Runtime against torch: values, any batch, the store, what they reject."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from engine.runtime import artifacts
from engine.runtime.open import open_runtime
from engine.runtime.openvino import OpenVinoExecutable
from export.errors import ExportError, RuntimeUnavailableError
from export.hashed import write_entry
from export.parity import TOLERANCE, compare, reference
from export.spec import NetworkSpec
from export.store import Store
from tests.engine.runtime.conditioned import CHUNK, conditioned_spec, opened
from tests.logs import log_lines, record_info
from tests.runtime_options import torch_options


@pytest.fixture(scope="module")
def spec() -> NetworkSpec:
    return conditioned_spec()


@pytest.fixture(autouse=True)
def _record_info(caplog: pytest.LogCaptureFixture) -> None:
    record_info(caplog)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("engines"))


OPENED = [
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "fp16"),
]


@pytest.mark.parametrize(("runtime", "precision"), OPENED)
@pytest.mark.parametrize("rows", [1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
def test_any_batch_matches_torch(
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
    from engine.hardware import BF16_INSTRUCTIONS
    from kernels import cpu_features

    if not BF16_INSTRUCTIONS.intersection(cpu_features()):
        pytest.skip("this processor has no bf16")


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_another_resolution_within_the_range_is_compiled(
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


def test_a_compiled_model_comes_from_the_store(
    spec: NetworkSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = spec.example({"batch": 2})
    results = []
    for _ in range(2):
        with Store(tmp_path) as store:
            results.append(opened(spec, store, "openvino", "fp32")(**inputs)["logits"])
    assert torch.equal(*results)
    assert [line.split(" for the")[0] for line in log_lines(caplog)] == [
        "conditioned: building onnx fp32",
        "conditioned: building openvino fp32",
    ]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_graph_or_compiled_model_with_one_altered_byte_is_rejected(
    spec: NetworkSpec, tmp_path: Path, kind: str
) -> None:
    inputs = spec.example({"batch": 2})
    with Store(tmp_path) as store:
        opened(spec, store, "openvino", "fp32")(**inputs)
    (file,) = (path for path in tmp_path.glob(f"conditioned-{kind}-*/model.*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)
    with Store(tmp_path) as store, pytest.raises(ExportError, match=str(file.parent)):
        opened(spec, store, "openvino", "fp32")(**inputs)


def test_a_stored_graph_that_reads_files_elsewhere_is_rejected(spec: NetworkSpec, tmp_path: Path) -> None:
    """Hashes do not protect against an attacker, who can also write a matching entry.json."""
    folder = tmp_path / "store"
    with Store(folder) as store:
        path = artifacts.graph(spec, torch_options(runtime="onnxruntime", store=store)).path
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    (path.parent / "weights").rename(tmp_path / "weights")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../weights"
    path.write_bytes(model.SerializeToString())
    entry = path.parent / "entry.json"
    key = json.loads(entry.read_text())["key"]
    entry.unlink()
    write_entry(path.parent, key)
    with Store(folder) as store:
        for runtime in ("onnxruntime", "openvino"):
            with pytest.raises(ExportError, match=r"point to '../../weights', outside the graph's folder"):
                open_runtime(spec, torch_options(runtime=runtime, store=store))


@pytest.mark.parametrize(
    ("runtime", "precision", "words"),
    [
        ("openvino", "fp16", "openvino computes in fp32 or bf16 on a CPU, not in fp16"),
        ("onnxruntime", "bf16", "onnxruntime has no bf16 on a CPU; use --precision fp32"),
    ],
)
def test_a_precision_that_a_runtime_lacks_is_one_line(
    spec: NetworkSpec, store: Store, runtime: str, precision: str, words: str
) -> None:
    with pytest.raises(RuntimeUnavailableError, match=words):
        opened(spec, store, runtime, precision)


def test_openvino_checks_the_precision_it_computes_in(spec: NetworkSpec, store: Store) -> None:
    """A processor without bf16 accepts the hint and computes in float32."""
    shapes = tuple(value.shape for value in spec.example({"batch": CHUNK}).values())
    in_fp32, in_bf16 = (opened(spec, store, "openvino", precision) for precision in ("fp32", "bf16"))
    assert isinstance(in_fp32, OpenVinoExecutable)
    assert isinstance(in_bf16, OpenVinoExecutable)
    with pytest.raises(RuntimeUnavailableError, match="should compute in bf16 but computes in f32"):
        in_bf16._check_precision(in_fp32._compiled(shapes))


def test_the_description_names_version_and_provider(spec: NetworkSpec, store: Store) -> None:
    assert opened(spec, store, "openvino", "fp32").description.startswith("openvino 20")
    assert opened(spec, store, "onnxruntime", "fp32").description.endswith("on CPUExecutionProvider")


def test_openvino_computes_in_bf16_from_the_fp32_graph(spec: NetworkSpec, store: Store) -> None:
    options = [torch_options(runtime="openvino", precision=p, store=store) for p in ("bf16", "fp32")]
    assert len({artifacts.graph(spec, each).path for each in options}) == 1


CORES_THEN_CTRL_C = """
import gc, signal
import numpy as np
import openvino
from openvino import opset13
from engine.runtime.openvino import core
x = opset13.parameter([1], np.float32)
model = openvino.Model([opset13.relu(x)], [x])
open_ones = [(each, each.compile_model(model, "CPU")) for each in (core(), core())]
while open_ones:
    del open_ones[0]
    gc.collect()
signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_after_openvino_causes_no_segmentation_fault() -> None:
    command = [sys.executable, "-X", "faulthandler", "-c", CORES_THEN_CTRL_C]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.stderr.rstrip().endswith("KeyboardInterrupt")
    assert finished.returncode == -signal.SIGINT
