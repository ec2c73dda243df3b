"""Small banks for the tests."""

from pathlib import Path
from typing import Any

import numpy as np

from engine.bank.config import Codec
from engine.bank.manifest import Header
from engine.bank.rows import Rows
from engine.bank.writer import BankWriter

CLASSES = ("shirt", "boot", "bag")


def header(**changes: Any) -> Header:
    fields: dict[str, Any] = {
        "recipe": {"seed": 0, "bank": {"codec": "raw"}, "filter": {"omega": 0.5}},
        "settings_sha256": "5" * 64,
        "class_names": CLASSES,
        "image_size": (8, 8),
        "codec": "raw",
        "quality": 95,
        "facts": {"teacher": {"name": "wrn_16_2", "licence": "Apache-2.0"}},
    }
    return Header(**(fields | changes))


def shard(number: int, size: tuple[int, int] = (8, 8), length: int = 12) -> tuple[Rows, np.ndarray]:
    """Rows of which every third is rejected, and uint8 images [K, *size, 3]; smooth, for the lossy codecs."""
    draw = np.random.default_rng(number)
    sources = np.arange(length) < length // 3
    similarity = draw.uniform(-1, 1, length).astype(np.float32)
    similarity[sources] = np.nan
    keys = np.arange(length) + 1000 * number
    kept = sources | (np.arange(length) % 3 != 0)
    rows = Rows(
        keys=keys,
        labels=draw.integers(0, len(CLASSES), length),
        parents=np.where(sources, -1, keys[0] if length else 0),
        seeds=draw.integers(0, 2**62, length),
        similarity=similarity,
        passes_clip=kept.copy(),
        kept=kept,
        teacher_top1=draw.integers(0, len(CLASSES), length),
        confidence=draw.uniform(0, 1, length).astype(np.float32),
    )
    base = draw.integers(0, 200, (kept.sum(), 1, 1, 3))
    ramp = np.linspace(0, 50, size[0])[None, :, None, None] + np.zeros((1, 1, size[1], 1))
    return rows, (base + ramp).astype(np.uint8)


def write(url: str | Path, numbers: Any = range(3), *, resume: bool = False, **changes: Any) -> list[str]:
    """Commits those shards of the same bank and gives what was said."""
    said: list[str] = []
    head = header(**changes)
    with BankWriter.open(str(url), head, resume=resume, say=said.append) as writer:
        for number in numbers:
            if number not in writer.committed:
                writer.commit(number, *shard(number, head.image_size))
    return said


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file; of dot-files only their names."""
    return {p.name: b"" if p.name.startswith(".") else p.read_bytes() for p in sorted(folder.iterdir())}


CODECS: tuple[Codec, ...] = ("raw", "png", "webp", "jpeg")


def assert_same(one: Rows, other: Rows) -> None:
    for field in Rows.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
        assert getattr(one, field).dtype == getattr(other, field).dtype
