"""Build the files of a shard: a pure function of its rows and images."""

import json
import math
from collections.abc import Iterator, Sequence

import numpy as np

from engine.bank.codecs import EXTENSIONS, Images, encode
from engine.bank.manifest import Header, shard_files
from engine.bank.rows import Rows, row_fault
from engine.bank.stats import Stats
from engine.bank.table import Table, to_parquet
from engine.bank.tars import Member, pack

DALI_INDEX_VERSION = "v1.2"


def dali_index(members: Sequence[Member]) -> bytes:
    """Return DALI's index: per sample, a line with extension, offset, size and name of image and json."""
    lines = [f"{DALI_INDEX_VERSION} {len(members) // 2}"]
    for image, description in zip(members[::2], members[1::2], strict=True):
        lines.append(f"{_entry(image)} {_entry(description)}")
    return ("\n".join(lines) + "\n").encode()


def _entry(member: Member) -> str:
    return f"{member.name.partition('.')[2]} {member.offset} {member.size} {member.name}"


def stems(rows: Rows) -> list[str]:
    """Return the file name of each kept image, without the extension."""
    return [f"{key:012d}" for key in rows.keys[rows.kept].tolist()]


def descriptions(rows: Rows, class_names: Sequence[str]) -> Iterator[bytes]:
    """Yield the json of each kept image; `similarity` is null if none was measured."""
    kept = rows.kept
    columns = {
        "key": rows.keys[kept].tolist(),
        "label": rows.labels[kept].tolist(),
        "class_name": [class_names[label] for label in rows.labels[kept].tolist()],
        "parent": rows.parents[kept].tolist(),
        "seed": rows.seeds[kept].tolist(),
        "similarity": [None if math.isnan(value) else value for value in rows.similarity[kept].tolist()],
        "teacher_top1": rows.teacher_top1[kept].tolist(),
        "confidence": rows.confidence[kept].tolist(),
    }
    for values in zip(*columns.values(), strict=True):
        yield json.dumps(dict(zip(columns, values, strict=True))).encode()


def shard_contents(number: int, rows: Rows, images: Images, header: Header) -> dict[str, bytes]:
    """Return the contents of each file of a shard by name.

    Args:
        images: the kept images, uint8 [K, H, W, 3], in the order of the rows.

    Raises:
        ValueError: if the rows or images are invalid or do not match the header.
    """
    _check(rows, images, header)
    extension = EXTENSIONS[header.codec]
    encoded = encode(images[..., : header.channels], header.codec, header.quality)
    files: list[tuple[str, bytes]] = []
    described = descriptions(rows, header.class_names)
    for stem, image, description in zip(stems(rows), encoded, described, strict=True):
        files += ((f"{stem}.{extension}", image), (f"{stem}.json", description))
    tar, members = pack(files)
    offsets = np.full(len(rows), -1, np.int64)
    offsets[rows.kept] = [member.offset for member in members[::2]]
    sizes = np.zeros(len(rows), np.int32)
    sizes[rows.kept] = [member.size for member in members[::2]]
    stats = Stats.of(rows, len(header.class_names))
    parquet = to_parquet(Table(rows, offsets, sizes))
    contents = (tar, dali_index(members), parquet, stats.to_json())
    return dict(zip(shard_files(number), contents, strict=True))


def _check(rows: Rows, images: Images, header: Header) -> None:
    fault = row_fault(rows, len(header.class_names))
    if fault is not None:
        raise ValueError(fault)
    shape = (rows.kept.sum(), *header.image_size, 3)
    if images.dtype != np.uint8 or images.shape != shape:
        raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 {shape}")
    if header.channels == 1 and (images[..., 1:] != images[..., :1]).any():
        raise ValueError("the images of a grey bank must have three equal channels, but these differ")
