"""What rows must be, whoever made them."""

from dataclasses import fields

import numpy as np

from engine.bank.rows import Rows


def row_fault(rows: Rows, num_classes: int) -> str | None:
    """Why these are no rows of a shard, None where they are."""
    for field in fields(rows):
        if getattr(rows, field.name).shape != (len(rows),):
            return f"the column {field.name} has another length"
    if len(rows) and (rows.keys[0] < 0 or (np.diff(rows.keys) <= 0).any()):
        return "the keys are negative or do not ascend"
    if len(rows) and not 0 <= rows.labels.min() <= rows.labels.max() < num_classes:
        return f"a label is not in [0, {num_classes})"
    return None
