"""The parquet file of a shard: one row per image, including rejected ones."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.bank.rows import Int, Rows, row_fault

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = {
    "key": ("keys", "int64"),
    "label": ("labels", "int64"),
    "parent": ("parents", "int64"),
    "seed": ("seeds", "int64"),
    "similarity": ("similarity", "float32"),
    "passes_clip": ("passes_clip", "bool"),
    "kept": ("kept", "bool"),
    "teacher_top1": ("teacher_top1", "int64"),
    "confidence": ("confidence", "float32"),
}
"""Field of `Rows` and type of each parquet column."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a shard and the byte span of each encoded image in its tar; columns [N]."""

    rows: Rows
    offsets: Int
    """-1 for rejected images."""
    sizes: npt.NDArray[np.int32]
    """0 for rejected images."""


def to_parquet(table: Table) -> bytes:
    """Return the parquet file of a table."""
    import pyarrow as pa
    from pyarrow import parquet

    arrays = [
        pa.array(getattr(table.rows, field), pa.type_for_alias(kind)) for field, kind in COLUMNS.values()
    ]
    arrays += [pa.array(table.offsets, pa.int64()), pa.array(table.sizes, pa.int32())]
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(arrays, schema=_schema()), file, compression="zstd")
    return file.getvalue()


def from_parquet(data: bytes, num_classes: int) -> Table:
    """Read the parquet file of a shard.

    Raises:
        ValueError: if `data` is not a parquet file of valid rows; the message follows the file's name.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(data))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"cannot be read ({error})") from None
    if table.schema != _schema() or any(column.null_count for column in table.columns):
        raise ValueError("does not have the columns of a bank")
    columns = {name: table[name].to_numpy() for name in table.column_names}
    rows = Rows(**{field: columns[name] for name, (field, _) in COLUMNS.items()})
    if fault := row_fault(rows, num_classes):
        raise ValueError(f"has invalid rows: {fault}")
    return Table(rows, columns["offset"], columns["bytes"])


def _schema() -> "pa.Schema":
    import pyarrow as pa

    fields = [(name, pa.type_for_alias(kind)) for name, (_, kind) in COLUMNS.items()]
    return pa.schema([*fields, ("offset", pa.int64()), ("bytes", pa.int32())])
