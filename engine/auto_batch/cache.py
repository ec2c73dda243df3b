"""What was measured, a JSON file for each question, in the folder of engines."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.auto_batch.search import Reading
from export.disk import full_disk


def path_of(folder: Path, stage: str, question: Mapping[str, Any]) -> Path:
    """The file for the answer to `question`, everything that decides it."""
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    return folder / f"batch-{stage}-{digest[:16]}.json"


def read(path: Path) -> Reading | None:
    """None where there is no file, or one that is no answer."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        size, rate = found["size"], found["images_per_second"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    sound = type(size) is int and size >= 1 and type(rate) is float and rate > 0
    return Reading(size, rate) if sound else None


def write(path: Path, reading: Reading, question: Mapping[str, Any]) -> None:
    """Whole or not at all, also where several processes write it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {"size": reading.size, "images_per_second": reading.rate, "measured_for": dict(question)}
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.stem}", delete=False, encoding="utf-8"
    ) as part:
        try:
            json.dump(content, part, indent=2)
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).replace(path)
        except BaseException as error:
            Path(part.name).unlink(missing_ok=True)
            if (failure := full_disk(error, path)) is not None:
                raise failure from error
            raise
