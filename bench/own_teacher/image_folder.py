"""Data sets as folders of class folders: DIR/train/CLASS/*.png and DIR/test/CLASS/*.png."""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from engine.errors import UserError

SPLITS = ("train", "test")
ABOUT = "about.json"


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of a split: uint8 [N, C, H, W], with labels int64 [N] into the sorted class names."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of each channel, for pixels in [0, 1]."""
        channels = self.pixels.transpose(0, 1).flatten(1).double() / 255
        return tuple(channels.mean(1).tolist()), tuple(channels.std(1).tolist())


def write(
    root: Path, split: str, images: Iterable[tuple[str, str, NDArray[np.uint8]]], about: Mapping[str, Any]
) -> int:
    """Write (class, name, pixels [H, W] or [H, W, 3]) as PNGs below `root`/`split`; return their number.

    `about` says what the split was made from; it goes to `root`/about.json.
    Raises UserError if the split is there.
    """
    folder = root / split
    if folder.exists():
        raise UserError(f"--out: {folder} exists; delete it or give another folder")
    partial = root / f".{split}-partial"
    count = 0
    for label, name, pixels in images:
        file = partial / label / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        count += 1
    partial.rename(folder)
    path = root / ABOUT
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | {split: {"images": count, **about}}, indent=1), encoding="utf-8")
    return count


def read(root: Path, split: str) -> Images:
    """Read a split. Raises UserError if it has no images, or images of several sizes."""
    folder = root / split
    classes = tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()
    files = [
        (file, index) for index, name in enumerate(classes) for file in sorted((folder / name).iterdir())
    ]
    if not files:
        raise UserError(f"--data: no images in {folder}")
    with ThreadPoolExecutor(2) as pool:
        pixels = list(pool.map(_read, (file for file, _ in files)))
    if len({image.shape for image in pixels}) > 1:
        raise UserError(f"--data: the images in {folder} have several sizes")
    return Images(
        pixels=torch.from_numpy(np.stack(pixels)),
        labels=torch.tensor([index for _, index in files]),
        classes=classes,
    )


def _read(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
