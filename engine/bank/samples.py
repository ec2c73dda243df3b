"""The samples of a shard: for each kept image KEY.EXT, then KEY.json that describes it."""

import json
import math
from collections.abc import Iterator, Sequence

from engine.bank.rows import Rows


def stems(rows: Rows) -> list[str]:
    """The name of each kept image without its extension."""
    return [f"{key:012d}" for key in rows.keys[rows.kept].tolist()]


def descriptions(rows: Rows, class_names: Sequence[str]) -> Iterator[bytes]:
    """The json of each kept image; `similarity` is null where there is none."""
    kept = rows.kept
    columns = {
        "key": rows.keys[kept].tolist(),
        "label": rows.labels[kept].tolist(),
        "class_name": [class_names[label] for label in rows.labels[kept].tolist()],
        "parent": rows.parents[kept].tolist(),
        "seed": rows.seeds[kept].tolist(),
        "similarity": [None if math.isnan(it) else it for it in rows.similarity[kept].tolist()],
        "teacher_top1": rows.teacher_top1[kept].tolist(),
        "confidence": rows.confidence[kept].tolist(),
    }
    for values in zip(*columns.values(), strict=True):
        yield json.dumps(dict(zip(columns, values, strict=True))).encode()
