import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export.errors import ExportError, RuntimeUnavailableError
from export.store import Key, Store
from export.tensorrt.options import FILE, BuildOptions
from tests.export.tensorrt.graphs import CHANNELS, SHAPES, TYPES, convolution, model, saved
from tests.logs import log_lines, record_info

pytest.importorskip("tensorrt_rtx")

from export.tensorrt import builder
from export.tensorrt.bindings import LOGGER, VERSION, trt
from export.tensorrt.builder import build_engine, engine_key_parts

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")


def quiet(*_: object) -> None:
    pass


def built(
    proto: onnx.ModelProto, folder: Path, options: BuildOptions | None = None, shapes: Any = SHAPES
) -> bytes:
    path = folder / FILE
    build_engine(saved(proto, folder), path, shapes, options or BuildOptions(), quiet)
    return path.read_bytes()


def is_engine(blob: bytes) -> bool:
    """Return whether the runtime recognizes the bytes as an engine, with or without a GPU."""
    _, bits = trt.Runtime(LOGGER).get_engine_validity(blob)
    return not bits & trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE.value


def refusal(build: Callable[[], object], kind: type[ExportError] = ExportError) -> str:
    with pytest.raises(kind) as refused:
        build()
    line = str(refused.value)
    assert "\n" not in line
    return line


def test_the_profile_has_the_min_opt_and_max_shape(tmp_path: Path) -> None:
    assert len(set(SHAPES["x"])) == 3
    path = saved(convolution(), tmp_path)
    network = trt.Builder(LOGGER).create_network()
    parser = builder._parse(network, path)
    profile = builder._profile(trt.Builder(LOGGER), network, SHAPES, path)
    assert {name: [tuple(shape) for shape in profile.get_shape(name)] for name in SHAPES} == {
        name: list(shapes) for name, shapes in SHAPES.items()
    }
    del parser  # it owns the weights that the network points to


@pytest.mark.parametrize("dtype", TYPES)
def test_an_engine_of_varying_batch_and_resolution_in_every_precision(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    graph = convolution(dtype=dtype)
    onnx.checker.check_model(graph, full_check=True)
    assert is_engine(built(graph, tmp_path))
    assert not is_engine(b"no engine" * 100)


def test_float32_is_not_rounded_to_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built_with: list[bool] = []

    def note(_: trt.Builder, __: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
        built_with.append(config.get_flag(trt.BuilderFlag.TF32))

    monkeypatch.setattr(trt.Builder, "build_serialized_network", note)
    assert "could not build an engine" in refusal(lambda: built(convolution(), tmp_path))
    assert built_with == [False]


def test_an_engine_holds_the_weights_of_external_data(tmp_path: Path) -> None:
    proto = convolution(size=31)
    inline = built(proto, tmp_path / "inline")
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    engine = tmp_path / FILE
    build_engine(path, engine, SHAPES, BuildOptions(), quiet)
    assert engine.stat().st_size == pytest.approx(len(inline), rel=0.01)
    (tmp_path / "model.onnx.data").unlink()
    line = refusal(lambda: build_engine(path, engine, SHAPES, BuildOptions(), quiet))
    assert "initializer: weights" in line


def test_an_operator_that_cannot_be_parsed_is_named_in_one_line(tmp_path: Path) -> None:
    det = helper.make_node("Det", ["x"], ["y"], "the_determinant")
    line = refusal(lambda: built(model([det], []), tmp_path))
    assert line.startswith(f"{tmp_path / 'model.onnx'}: {VERSION} cannot parse the graph: ")
    assert "node 'the_determinant' (Det): " in line
    assert line.endswith("; choose another --runtime")


def test_a_file_that_is_not_a_graph_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a protobuf")
    line = refusal(lambda: build_engine(path, tmp_path / FILE, SHAPES, BuildOptions(), quiet))
    assert "Failed to parse the ONNX model" in line


def test_inputs_in_half_precision_are_rejected(tmp_path: Path) -> None:
    half = model([helper.make_node("Relu", ["x"], ["y"])], [])
    half.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    half.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    assert "x is not float32" in refusal(lambda: built(half, tmp_path))


@pytest.mark.parametrize(
    ("shapes", "part"),
    [
        ({"z": SHAPES["x"]}, "the inputs are x, but shapes has z"),
        ({"x": ((2, 3, 8, 8), (1, 3, 16, 16), (4, 3, 32, 32))}, "cannot take min (2, 3, 8, 8), opt"),
        ({"x": ((1, 1, 8, 8), (2, 3, 16, 16), (4, 3, 32, 32))}, "input x has shape (-1, 3, -1, -1), which"),
        ({"x": ((1, 3, 8), (2, 3, 16), (4, 3, 32))}, "input x has shape (-1, 3, -1, -1), which"),
        ({"x": ((0, 3, 8, 8), (2, 3, 16, 16), (4, 3, 32, 32))}, "cannot take min (0, 3, 8, 8)"),
    ],
)
def test_shapes_that_do_not_fit_the_graph_are_rejected(tmp_path: Path, shapes: Any, part: str) -> None:
    assert part in refusal(lambda: built(convolution(), tmp_path, shapes=shapes))


def test_a_workspace_too_small_for_any_kernel_is_an_error(tmp_path: Path) -> None:
    small = BuildOptions(workspace_bytes=1 << 20)
    assert "workspace limit" in refusal(lambda: built(convolution(), tmp_path, small))
    assert is_engine(built(convolution(), tmp_path, BuildOptions(workspace_bytes=1 << 30)))


def test_engines_are_built_for_the_named_gpus(tmp_path: Path) -> None:
    ada = built(convolution(), tmp_path, BuildOptions(compute_capabilities=("8.9",)))
    blackwell = built(convolution(), tmp_path, BuildOptions(compute_capabilities=("12.0",)))
    assert is_engine(ada)
    assert is_engine(blackwell)
    assert len(ada) != len(blackwell)


def test_an_unknown_gpu_is_rejected_with_a_list_of_the_known_ones(tmp_path: Path) -> None:
    hopper = BuildOptions(compute_capabilities=("8.9", "9.0"))
    line = refusal(lambda: built(convolution(), tmp_path, hopper))
    assert line.startswith(f"{VERSION} cannot build for compute capability 9.0, only for ")
    assert "8.6, 8.9, 12.0" in line


@no_gpu
@pytest.mark.parametrize(
    ("options", "option"),
    [
        (BuildOptions(compute_capabilities=("current",)), "compute_capabilities=current"),
        (BuildOptions(refit="stripped"), "refit=stripped"),
    ],
)
def test_options_that_need_a_gpu_are_rejected_without_one(
    tmp_path: Path, options: BuildOptions, option: str
) -> None:
    line = refusal(lambda: built(convolution(), tmp_path, options), RuntimeUnavailableError)
    assert line.startswith(f"{VERSION} needs an NVIDIA GPU to build with {option}")


@pytest.mark.gpu
def test_a_stripped_engine_lacks_the_weights(tmp_path: Path) -> None:
    proto = convolution(size=31)
    weights = CHANNELS * 3 * 31 * 31 * torch.float16.itemsize
    full = built(proto, tmp_path)
    stripped = built(proto, tmp_path, BuildOptions(refit="stripped"))
    assert len(full) - len(stripped) > weights / 2


def test_the_build_reports_its_progress(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = saved(convolution(), tmp_path)
    build_engine(path, tmp_path / FILE, SHAPES, BuildOptions(), lambda *progress: seen.append(progress))
    assert all(0 <= done <= steps for _, done, steps in seen)
    outermost = [done for phase, done, _ in seen if phase == seen[0][0]]
    assert outermost == list(range(len(outermost)))
    assert len({phase for phase, _, _ in seen}) > 1


def test_ctrl_c_ends_the_build(tmp_path: Path) -> None:
    path = saved(convolution(), tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engine(
            path, tmp_path / FILE, SHAPES, BuildOptions(), lambda *_: os.kill(os.getpid(), signal.SIGINT)
        )
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / FILE).exists()


def test_an_error_in_the_callback_ends_the_build(tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError):
        build_engine(saved(convolution(), tmp_path), tmp_path / FILE, SHAPES, BuildOptions(), broken)
    assert not (tmp_path / FILE).exists()


def cached(store: Store, graph: Path, options: BuildOptions | None = None) -> Path:
    options = options or BuildOptions()
    parts = {
        "graph": hashlib.sha256(graph.read_bytes()).hexdigest(),
        **engine_key_parts(SHAPES, options),
    }
    key = Key(network="tiny", kind="tensorrt", precision="fp16", parts=parts)
    return store.get(key, lambda part: build_engine(graph, part / FILE, SHAPES, options, quiet))


def test_an_engine_is_built_once_and_again_for_other_weights_or_options(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_info(caplog)
    graph, other = saved(convolution(), tmp_path / "a"), saved(convolution(seed=1), tmp_path / "b")
    with Store(tmp_path / "store") as store:
        entry = cached(store, graph)
        assert cached(store, graph) == entry
        assert cached(store, other) != entry
        cached(store, other, BuildOptions(compute_capabilities=("8.9",)))
        assert is_engine(store.read(entry, FILE))
    assert log_lines(caplog) == [
        "tiny: building tensorrt fp16 for the first time",
        "tiny: graph changed, building tensorrt fp16 again",
        "tiny: compute capabilities changed, building tensorrt fp16 again",
    ]


def test_an_engine_with_one_altered_byte_is_rejected(tmp_path: Path) -> None:
    graph = saved(convolution(), tmp_path)
    with Store(tmp_path / "store") as store:
        path = cached(store, graph) / FILE
        engine = bytearray(path.read_bytes())
        engine[len(engine) // 2] ^= 1
        path.write_bytes(engine)
        assert "was altered" in refusal(lambda: cached(store, graph))
        assert "was altered" in refusal(lambda: store.read(path.parent, FILE))
