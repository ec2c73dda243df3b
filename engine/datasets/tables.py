"""Open tables of images: parquet files, and folders that Hugging Face's `datasets` wrote with save_to_disk.

A table has a column `image` (or `img`) of encoded files, as bytes or as a struct of bytes and path, and a
column `label` of numbers or names. The names of a ClassLabel are in the schema's metadata.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.datasets.source import Encoded, LabeledSource, index_labels
from engine.errors import UserError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMN = "label"
ROWS = 64
"""Rows of a parquet file that are in memory at once."""
TEST = "test"


@dataclass(frozen=True, kw_only=True)
class _Table:
    format: str
    paths: Sequence[Path]
    schema: pa.Schema
    batches: Callable[[Path, str], Iterator[Any]]
    """Yields one column of a file in parts."""


def open_parquet(paths: Sequence[Path]) -> LabeledSource:
    """Open parquet files as one set. Raises UserError that names the file of a fault."""

    def batches(path: Path, column: str) -> Iterator[Any]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS, columns=[column]):
                yield batch.column(column)

    with _errors_named(paths[0]):
        schema = pq.read_schema(paths[0])
    return _open(_Table(format="parquet", paths=paths, schema=schema, batches=batches))


def open_saved(folder: Path) -> LabeledSource:
    """Open a folder of save_to_disk, of a DatasetDict its split `test`.

    Raises UserError if there is no such split, and for a fault; the message names the folder or file.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        if TEST not in splits:
            raise UserError(
                f"{folder} has no split `{TEST}`; give the folder of one of its splits: "
                + ", ".join(str(folder / str(split)) for split in splits)
            )
        folder = folder / TEST
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} has an indices mapping; save it again after flatten_indices()")
    try:
        paths = [folder / entry["filename"] for entry in state["_data_files"]]
    except (LookupError, TypeError):
        raise UserError(f"{folder / 'state.json'} lists no data files; save the dataset again") from None
    if not paths:
        raise UserError(f"{folder} has no images")
    with _errors_named(paths[0]), pa.memory_map(str(paths[0])) as file:
        schema = pa.ipc.open_stream(file).schema

    def batches(path: Path, column: str) -> Iterator[Any]:
        with pa.memory_map(str(path)) as file:
            for batch in pa.ipc.open_stream(file):
                yield batch.column(column)

    return _open(_Table(format="Hugging Face dataset", paths=paths, schema=schema, batches=batches))


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); save the dataset again") from None
    return fields if isinstance(fields, dict) else {}


def _open(table: _Table) -> LabeledSource:
    names, first = table.schema.names, table.paths[0]
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None or LABEL_COLUMN not in names:
        raise UserError(f"{first} needs the columns image and {LABEL_COLUMN}, but has {', '.join(names)}")
    kind = table.schema.field(image).type
    if not (_is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
        raise UserError(f"{first}: column {image} is {kind}; it must hold image files as bytes")
    raw = [label for path in table.paths for label in _labels(table, path)]
    labels, class_names = index_labels(raw, str(first))
    return LabeledSource(
        format=table.format,
        labels=labels,
        class_names=class_names or _names_of_class_label(table.schema),
        read=lambda: _images(table, image),
        has_own_order=class_names is None,
    )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _labels(table: _Table, path: Path) -> Iterator[int | str]:
    with _errors_named(path):
        for column in table.batches(path, LABEL_COLUMN):
            for label in column.to_pylist():
                if not isinstance(label, int | str) or isinstance(label, bool):
                    raise UserError(f"{path}: a label is {label!r}; labels must be whole numbers or names")
                yield label


def _images(table: _Table, column: str) -> Iterator[Encoded]:
    for path in table.paths:
        with _errors_named(path):
            row = 0
            for part in table.batches(path, column):
                for value in part:
                    yield _encoded(value.as_py(), path, row)
                    row += 1


def _encoded(value: Any, path: Path, row: int) -> Encoded:
    file = None
    if isinstance(value, dict):
        value, file = value.get("bytes"), value.get("path")
    where = f"{path}: row {row}" + (f" ({file})" if file else "")
    if value is not None:
        return Encoded(where, value)
    if not file:
        raise UserError(f"{where} has no image; remove the row")
    return Encoded(where, path.parent / file)


def _names_of_class_label(schema: pa.Schema) -> tuple[str, ...] | None:
    """Return the names that `datasets` stores for a ClassLabel, None without any."""
    try:
        fields = json.loads((schema.metadata or {})[b"huggingface"])
        names = fields["info"]["features"][LABEL_COLUMN]["names"]
        return tuple(map(str, names))
    except (LookupError, TypeError, ValueError):
        return None


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a table of images ({reason}); restore it") from error
