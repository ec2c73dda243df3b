"""A set of labelled images on disk, whatever its format: the labels, and how each image becomes pixels."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from engine.errors import UserError

NPY = b"\x93NUMPY"
SKIPPED_FORMATS = {"BUFR", "EPS", "FITS", "FPX", "GRIB", "HDF5", "MIC", "MPEG", "WMF"}
"""Formats that PIL lists but cannot decode by itself; EPS would start Ghostscript."""


class Encoded(NamedTuple):
    """An image before it is decoded."""

    where: str
    """File or position, for messages."""
    content: bytes | Path | Image.Image | NDArray[np.uint8]
    """Contents or path of an image file or a .npy file, a PIL image, or pixels uint8 [H, W, C] or [H, W]."""


@dataclass(frozen=True, kw_only=True)
class LabeledSource:
    """Labelled images, opened: the labels have been read, the images have not."""

    format: str
    """What the set is, for messages and the summary, such as `class folders`."""
    labels: NDArray[np.int64]
    """[N], each the index of a name in `class_names` if there are names."""
    class_names: tuple[str, ...] | None
    """Names of the classes; None if the set has none."""
    read: Callable[[], Iterator[Encoded]]
    """Yields the N images in the order of the labels."""
    has_own_order: bool = False
    """Whether the set numbers its classes itself; otherwise their names are sorted as text."""


def index_labels(raw: Sequence[int | str], where: str) -> tuple[NDArray[np.int64], tuple[str, ...] | None]:
    """Return labels [N] and class names: the sorted distinct names if labels are text, None if integers.

    Raises UserError if both kinds occur.
    """
    names = sorted({label for label in raw if isinstance(label, str)})
    numbers = [label for label in raw if isinstance(label, int)]
    if names and numbers:
        raise UserError(
            f"{where}: some labels are text ('{names[0]}') and some are numbers ({numbers[0]}); use one kind"
        )
    if not names:
        try:
            return np.array(numbers, np.int64), None
        except OverflowError:
            raise UserError(f"{where}: label {max(numbers, key=abs)} is no class") from None
    index = {name: position for position, name in enumerate(names)}
    return np.array([index[str(label)] for label in raw], np.int64), tuple(names)


@cache
def readable_formats() -> tuple[str, ...]:
    """Return PIL's names of the formats that it decodes."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in SKIPPED_FORMATS)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of files that PIL decodes, such as `.jpg`."""
    formats = readable_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def decode(image: Encoded, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the image as RGB uint8 [3, H, W] of `size` (H, W).

    The shorter side is resized to fit (bilinear, with antialiasing) and the centre is cut out of the longer
    one; an image of that size stays as it is. Grey becomes three equal channels, 16 bits become the upper 8,
    alpha is dropped, only the first frame counts, and EXIF orientation is ignored, all as torchvision's
    ImageFolder does. Raises UserError that names the image if it cannot be read.
    """
    try:
        with _opened(image.content) as picture:
            fitted = ImageOps.fit(_rgb(picture), size[::-1], Image.Resampling.BILINEAR)
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise errors of many kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{image.where} cannot be read as an image ({reason}); restore it or remove it"
        ) from error
    return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))


def _opened(content: bytes | Path | Image.Image | NDArray[np.uint8]) -> AbstractContextManager[Image.Image]:
    if isinstance(content, Image.Image):
        return nullcontext(content)
    if isinstance(content, np.ndarray):
        return nullcontext(_from_pixels(content))
    if isinstance(content, Path):
        return Image.open(content, formats=readable_formats())
    if content.startswith(NPY):
        return nullcontext(_from_pixels(np.load(io.BytesIO(content), allow_pickle=False)))
    return Image.open(io.BytesIO(content), formats=readable_formats())


def _from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ValueError(f"an array {pixels.dtype} {list(pixels.shape)}, not uint8 [H, W, C]")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("32-bit floats, whose range is unknown; store 8 bits per channel")
    if image.mode.startswith("I"):
        sixteen_bits = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((sixteen_bits >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
