"""Small shards to measure and test the feed: only the tars, in the layout of a bank."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.bank.rows import Spans

SUFFIXES = {"raw": "npy", "png": "png", "webp": "webp", "jpeg": "jpg"}
_BLOCK = 512


def encoded(pixels: npt.NDArray[np.uint8], codec: str, **options: Any) -> bytes:
    """Encode an image, uint8 [H, W, 3], as a file; `options` go to Pillow's encoder."""
    file = io.BytesIO()
    if codec == "raw":
        np.save(file, pixels, allow_pickle=False)
    else:
        Image.fromarray(pixels).save(file, codec, **options)
    return file.getvalue()


def write_shard(
    path: Path,
    files: Sequence[bytes],
    labels: Sequence[int],
    *,
    codec: str,
    first_key: int = 0,
    agrees: Sequence[bool] | None = None,
) -> Spans:
    """Write a USTAR file with `KEY.npy` (or png, webp, jpg) and `KEY.json` for each image."""
    offsets, position = [], 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, (file, label) in enumerate(zip(files, labels, strict=True), first_key):
            offsets.append(position + _BLOCK)
            note = json.dumps({"label": int(label)}).encode()
            for suffix, content in ((SUFFIXES[codec], file), ("json", note)):
                member = tarfile.TarInfo(f"{key:08d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                position += _BLOCK + -(-len(content) // _BLOCK) * _BLOCK
    return Spans(
        path=path,
        offsets=np.array(offsets, np.int64),
        sizes=np.array([len(file) for file in files], np.int64),
        keys=np.arange(first_key, first_key + len(files)),
        labels=np.array(labels, np.int64),
        agrees=np.ones(len(files), bool) if agrees is None else np.array(agrees, bool),
    )
