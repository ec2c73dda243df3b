from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.errors import ExportError
from export.onnx import FILE, check_external_data

VALUES = np.arange(1, 7, dtype=np.float32)
DATA = f"{FILE}.data"


def tensor(location: str = DATA, name: str = "weights", **entries: object) -> TensorProto:
    """Return a tensor [6] whose values lie in another file."""
    proto = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=VALUES.shape)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


def model(
    nodes: list[onnx.NodeProto] | None = None, functions: tuple[onnx.FunctionProto, ...] = ()
) -> onnx.ModelProto:
    """Return a graph of y [6] = x [6] * weights, or of the given nodes."""
    nodes = nodes or [helper.make_node("Mul", ["x", "weights"], ["y"])]
    door, exit_ = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [6]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [door], [exit_])
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def with_weights(weights: TensorProto) -> onnx.ModelProto:
    proto = model()
    proto.graph.initializer.append(weights)
    return proto


def written(proto: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / DATA).write_bytes(VALUES.tobytes())
    (folder / FILE).write_bytes(proto.SerializeToString())
    return folder / FILE


def refusal(path: Path) -> str:
    with pytest.raises(ExportError) as refused:
        check_external_data(path)
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith(f"{path}")
    return line


@pytest.mark.parametrize(
    ("entries", "values"),
    [({}, VALUES), ({"offset": 0, "length": 24}, VALUES), ({"offset": 8, "length": 16}, VALUES[2:])],
    ids=["whole file", "all of it", "the end of it"],
)
def test_weights_next_to_the_graph_are_accepted(
    tmp_path: Path, entries: dict[str, int], values: np.ndarray
) -> None:
    weights = tensor(**entries)
    weights.dims[:] = values.shape
    path = written(with_weights(weights), tmp_path)
    check_external_data(path)
    proto = onnx.load(path)
    assert (onnx.numpy_helper.to_array(proto.graph.initializer[0]) == values).all()
    if len(values) == 6:
        (y,) = onnxruntime.InferenceSession(path).run(None, {"x": np.ones(6, np.float32)})
        assert (y == values).all()


def test_weights_in_a_subfolder_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / DATA).write_bytes(VALUES.tobytes())
    check_external_data(written(with_weights(tensor(f"below/{DATA}", length=24)), tmp_path))


def test_weights_inside_the_graph_are_accepted(tmp_path: Path) -> None:
    check_external_data(written(with_weights(onnx.numpy_helper.from_array(VALUES, "weights")), tmp_path))


def link_file(folder: Path) -> None:
    (folder / "weights").symlink_to(folder.parent / "secret")


def link_inside(folder: Path) -> None:
    (folder / "weights").symlink_to(folder / DATA)


def link_folder(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent)


def nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("location", "prepare"),
    [
        ("{outside}", nothing),
        ("../secret", nothing),
        ("below/../../secret", nothing),
        (f"../graph/{DATA}", nothing),
        ("weights", link_file),
        ("weights", link_inside),
        ("link/secret", link_folder),
        ("", nothing),
    ],
    ids=[
        "absolute",
        "above",
        "down and up",
        "up and back",
        "link",
        "link inside",
        "linked folder",
        "nowhere",
    ],
)
def test_weights_outside_the_folder_are_rejected(
    tmp_path: Path, location: str, prepare: Callable[[Path], None]
) -> None:
    (tmp_path / "secret").write_bytes(VALUES.tobytes())
    location = location.format(outside=tmp_path / "secret")
    path = written(with_weights(tensor(location)), tmp_path / "graph")
    (path.parent / "below").mkdir()
    prepare(path.parent)
    assert refusal(path) == (
        f"{path}: the weights `weights` point to '{location}', outside the graph's folder; "
        "export the network again"
    )


@pytest.mark.parametrize("location", ["gone", ".", "below"], ids=["no file", "the folder", "a folder"])
def test_missing_weights_are_rejected(tmp_path: Path, location: str) -> None:
    (tmp_path / "below").mkdir()
    assert "which is missing" in refusal(written(with_weights(tensor(location)), tmp_path))


@pytest.mark.parametrize(
    "entries",
    [
        {"length": 25},
        {"offset": 4, "length": 24},
        {"offset": 25},
        {"offset": -4, "length": 24},
        {"offset": 4, "length": -4},
        {"offset": 1 << 62, "length": 1 << 62},
        {"offset": "four"},
        {"length": ""},
    ],
    ids=str,
)
def test_locations_outside_the_file_are_rejected(tmp_path: Path, entries: dict[str, object]) -> None:
    line = refusal(written(with_weights(tensor(**entries)), tmp_path))
    assert f"the weights `weights` point to '{DATA}'" in line
    assert "beyond the end of that file" in line or "at an invalid offset" in line


def constant(**attribute: object) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], **attribute)


def in_initializer(bad: TensorProto) -> onnx.ModelProto:
    proto = model()
    proto.graph.initializer.extend([onnx.numpy_helper.from_array(VALUES, "sound"), bad])
    return proto


def sparse(bad: TensorProto, place: str) -> onnx.SparseTensorProto:
    proto = onnx.SparseTensorProto(dims=[6])
    proto.values.CopyFrom(onnx.numpy_helper.from_array(VALUES, "values"))
    proto.indices.CopyFrom(onnx.numpy_helper.from_array(np.arange(6), "indices"))
    getattr(proto, place).CopyFrom(bad)
    return proto


def in_sparse_values(bad: TensorProto) -> onnx.ModelProto:
    proto = model()
    proto.graph.sparse_initializer.append(sparse(bad, "values"))
    return proto


def in_sparse_indices(bad: TensorProto) -> onnx.ModelProto:
    proto = model()
    proto.graph.sparse_initializer.append(sparse(bad, "indices"))
    return proto


def in_attribute(bad: TensorProto) -> onnx.ModelProto:
    return model([constant(value=bad)])


def in_sparse_attribute(bad: TensorProto) -> onnx.ModelProto:
    return model([constant(sparse_value=sparse(bad, "values"))])


def in_list_attribute(bad: TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("Own", [], ["c"], domain="own", all=[bad])])


def branch(bad: TensorProto) -> onnx.GraphProto:
    return helper.make_graph([constant(value=bad)], "branch", [], [helper.make_empty_tensor_value_info("c")])


def in_subgraph(bad: TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("If", ["x"], ["y"], then_branch=branch(bad))])


def in_subgraph_of_subgraph(bad: TensorProto) -> onnx.ModelProto:
    inner = helper.make_node("If", ["x"], ["y"], else_branch=branch(bad))
    outer = helper.make_graph([inner], "outer", [], [])
    return model([helper.make_node("If", ["x"], ["y"], then_branch=outer)])


def in_list_of_subgraphs(bad: TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("Own", [], ["c"], domain="own", all=[branch(bad)])])


def function(nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    return helper.make_function("own", "Own", [], ["c"], nodes, [helper.make_opsetid("", 22)])


def in_function(bad: TensorProto) -> onnx.ModelProto:
    return model(functions=(function([constant(value=bad)]),))


def in_subgraph_of_function(bad: TensorProto) -> onnx.ModelProto:
    return model(functions=(function([helper.make_node("If", ["x"], ["y"], then_branch=branch(bad))]),))


def in_default_of_function(bad: TensorProto) -> onnx.ModelProto:
    own = function([])
    own.attribute_proto.append(helper.make_attribute("value", bad))
    return model(functions=(own,))


def in_training_graph(bad: TensorProto) -> onnx.ModelProto:
    proto = model()
    proto.training_info.add().algorithm.initializer.append(bad)
    return proto


HIDDEN = [
    in_initializer,
    in_sparse_values,
    in_sparse_indices,
    in_attribute,
    in_sparse_attribute,
    in_list_attribute,
    in_subgraph,
    in_subgraph_of_subgraph,
    in_list_of_subgraphs,
    in_function,
    in_subgraph_of_function,
    in_default_of_function,
    in_training_graph,
]


@pytest.mark.parametrize("hide", HIDDEN, ids=lambda hide: hide.__name__)
def test_a_tensor_is_found_anywhere_in_the_format(
    tmp_path: Path, hide: Callable[[TensorProto], onnx.ModelProto]
) -> None:
    check_external_data(written(hide(tensor(name="hidden")), tmp_path))
    line = refusal(written(hide(tensor("../secret", name="hidden")), tmp_path))
    assert "the weights `hidden` point to '../secret', outside" in line


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def other(_: bytes) -> bytes:
    return b"\xffnot a graph\n" * 9


@pytest.mark.parametrize("damage", [cut, other], ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = written(with_weights(tensor()), tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert "is not an ONNX graph" in refusal(path)


def test_a_missing_graph_is_named_in_one_line(tmp_path: Path) -> None:
    assert "is not an ONNX graph (FileNotFoundError)" in refusal(tmp_path / FILE)
