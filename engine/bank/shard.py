"""The files of a shard, a pure function of its rows and images."""

import numpy as np

from engine.bank.codecs import EXTENSIONS, Images, encode
from engine.bank.index import dali_index
from engine.bank.manifest import Header
from engine.bank.names import shard_files
from engine.bank.row_fault import row_fault
from engine.bank.rows import Rows
from engine.bank.samples import descriptions, stems
from engine.bank.stats import Stats
from engine.bank.table import Table, to_parquet
from engine.bank.tars import pack


def shard_contents(number: int, rows: Rows, images: Images, header: Header) -> dict[str, bytes]:
    """The bytes of each file by its name; `images` are uint8 [K, H, W, 3], those kept, in the rows' order.

    Raises ValueError for rows or images that are not of a shard of that header.
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
        raise ValueError("images of a grey bank have three equal channels, and these do not")
