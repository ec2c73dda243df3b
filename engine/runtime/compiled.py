"""What TensorRT-RTX compiled on this GPU, kept for the next process in a file that proves its bytes."""

import hashlib
from pathlib import Path

from engine.atomic import replacing
from export import locks

DIGEST_BYTES = hashlib.sha256().digest_size


def load(path: Path) -> bytes | None:
    """What was saved, or None where there is nothing or not all of it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, compiled = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    return compiled if hashlib.sha256(compiled).digest() == digest else None


def save(path: Path, compiled: bytes) -> None:
    """Replaces the file, unless another process is at it, which runs the same engine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive_if_free(path.with_name(f".{path.name}.lock")) as free:
        if free:
            with replacing(path) as part:
                part.write_bytes(hashlib.sha256(compiled).digest() + compiled)
