"""Check the external data of ONNX files: weights may come only from files in the graph's own folder."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import Message
from onnx.external_data_helper import uses_external_data

from export.errors import ExportError


def check_external_data(path: Path) -> None:
    """Reject a graph whose weights lie outside the folder of `path`, or beyond the end of their file.

    Raises an ExportError that names the graph, the tensor and the location it points to.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # a damaged protobuf raises many kinds of errors
        raise ExportError(f"{path} is not an ONNX graph ({type(error).__name__}); export it again") from error
    for tensor in _tensors(model):
        if uses_external_data(tensor):
            _check(tensor, path)


def _check(tensor: onnx.TensorProto, path: Path) -> None:
    entry = {item.key: item.value for item in tensor.external_data}
    location = entry.get("location", "")
    where = f"{path}: the weights `{tensor.name}` point to '{location}'"
    parts = Path(location).parts
    file = path.parent / location
    if not location or Path(location).is_absolute() or ".." in parts or _is_link(path.parent, parts):
        raise ExportError(f"{where}, outside the graph's folder; export the network again")
    if not file.is_file():
        raise ExportError(f"{where}, which is missing; export the network again")
    try:
        begin, length = int(entry.get("offset", 0)), int(entry.get("length", 0))
    except ValueError:
        raise ExportError(f"{where}, at an invalid offset; export the network again") from None
    if begin < 0 or length < 0 or begin + length > file.stat().st_size:
        raise ExportError(f"{where}, beyond the end of that file; export the network again")


def _is_link(folder: Path, parts: tuple[str, ...]) -> bool:
    return any(folder.joinpath(*parts[: depth + 1]).is_symlink() for depth in range(len(parts)))


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a message: in attributes of nodes, their subgraphs, functions, and so on."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield from _tensors(inner)
