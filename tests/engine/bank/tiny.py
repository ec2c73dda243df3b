"""Small banks for the tests."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from engine.bank.manifest import Header
from engine.bank.rows import Rows
from engine.bank.writer import BankWriter
from engine.config.storage import Codec
from tests.log_lines import log_lines

CLASSES = ("shirt", "boot", "bag")


def header(**changes: Any) -> Header:
    """Return the header of a small bank, with these fields changed."""
    fields: dict[str, Any] = {
        "recipe": {"seed": 0, "bank": {"codec": "raw"}, "filter": {"omega": 0.5}},
        "settings_sha256": "5" * 64,
        "class_names": CLASSES,
        "image_size": (8, 8),
        "channels": 3,
        "codec": "raw",
        "quality": 95,
        "facts": {"teacher": {"name": "wrn_16_2", "licence": "Apache-2.0"}},
    }
    return Header(**(fields | changes))


def shard(number: int, size: tuple[int, int] = (8, 8), length: int = 12) -> tuple[Rows, np.ndarray]:
    """Return rows, every third rejected, and images uint8 [K, *size, 3], smooth for the lossy codecs."""
    rng = np.random.default_rng(number)
    sources = np.arange(length) < length // 3
    similarity = rng.uniform(-1, 1, length).astype(np.float32)
    similarity[sources] = np.nan
    keys = np.arange(length) + 1000 * number
    kept = sources | (np.arange(length) % 3 != 0)
    rows = Rows(
        keys=keys,
        labels=rng.integers(0, len(CLASSES), length),
        parents=np.where(sources, -1, keys[0] if length else 0),
        seeds=rng.integers(0, 2**62, length),
        similarity=similarity,
        passes_clip=kept.copy(),
        kept=kept,
        teacher_top1=rng.integers(0, len(CLASSES), length),
        confidence=rng.uniform(0, 1, length).astype(np.float32),
    )
    base = rng.integers(0, 200, (kept.sum(), 1, 1, 3))
    ramp = np.linspace(0, 50, size[0])[None, :, None, None] + np.zeros((1, 1, size[1], 1))
    return rows, (base + ramp).astype(np.uint8)


def write(url: str | Path, numbers: Any = range(3), *, resume: bool = False, **changes: Any) -> list[str]:
    """Commits those shards of the same bank and returns what was logged."""
    head = header(**changes)
    with log_lines() as lines, BankWriter.open(str(url), head, resume=resume) as writer:
        for number in numbers:
            if number not in writer.committed:
                rows, images = shard(number, head.image_size)
                writer.commit(number, rows, images if head.channels == 3 else grey(images))
    return lines


def grey(images: np.ndarray) -> np.ndarray:
    """Return the first channel three times."""
    return images[..., :1].repeat(3, axis=3)


def to_version_1(folder: Path) -> None:
    """Turn a bank with three channels into one that an earlier version of the engine would have written."""
    document = json.loads((folder / "manifest.json").read_bytes())
    document["version"] = 1
    del document["sha256"], document["header"]["channels"]
    for name, entry in document["shards"].items():
        old = (f"{name}.tar", f"{name}.idx", f"{name}.parquet", f"{name}_stats.json")
        for new, before in zip(entry["files"], old, strict=True):
            (folder / new).rename(folder / before)
        entry["files"] = dict(zip(old, entry["files"].values(), strict=True))
    for empty in ("index", "rows", "stats"):
        (folder / empty).rmdir()
    document["sha256"] = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(document))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each file by name; empty bytes for dot-files."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): b"" if path.name.startswith(".") else path.read_bytes()
        for path in files
    }


CODECS: tuple[Codec, ...] = ("raw", "png", "webp", "jpeg")


def assert_same(one: Rows, other: Rows) -> None:
    for field in Rows.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
        assert getattr(one, field).dtype == getattr(other, field).dtype
