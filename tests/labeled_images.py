"""Small labelled images, written in the formats that a test set may have."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

SIZE = 16
NAMES = ("ape", "bee", "cow")
LABELS = (0, 2, 1, 1, 0, 2, 2)


def pixels(count: int = len(LABELS), size: int = SIZE) -> NDArray[np.uint8]:
    """Return images [N, H, W, 3] of noise, the same for each call."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def class_folders(folder: Path, names: Sequence[str] = NAMES, labels: Sequence[int] = LABELS) -> Path:
    """Write the images as folders of classes; the file's name is the number of the image."""
    for number, (label, image) in enumerate(zip(labels, pixels(len(labels)), strict=True)):
        path = folder / names[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return folder


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def shards(folder: Path, labels: Sequence[Any] = LABELS) -> Path:
    """Write the images as two WebDataset shards with .cls labels."""
    samples = list(zip(labels, pixels(len(labels)), strict=True))
    for number, part in enumerate((samples[:4], samples[4:])):
        members = []
        for row, (label, image) in enumerate(part):
            members += [(f"{number}{row:03}.png", png(image)), (f"{number}{row:03}.cls", str(label).encode())]
        tar(folder / f"{number:03}.tar", members)
    return folder


def parquet(path: Path, labels: Sequence[Any] = LABELS, names: Sequence[str] = ()) -> Path:
    """Write the images as a parquet file; with `names`, as `datasets` stores a ClassLabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(image), "path": None} for image in pixels(len(labels))]
    table = pa.table({"image": images, "label": list(labels)})
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path
