"""Open the test split of a torchvision dataset, and download it if it is missing."""

import inspect
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.datasets.source import Encoded, LabeledSource
from engine.errors import UserError

logger = logging.getLogger(__name__)

PREFIX = "torchvision:"
CACHE = Path.home() / ".cache" / "dda-engine" / "torchvision"
VALIDATION = {"CLEVRClassification", "ImageNet", "Imagenette", "Places365"}
"""Datasets whose labelled split for tests is called val."""
TIMEOUT_SECONDS = 30
LABELS = ("targets", "labels", "_labels")
"""Attributes that hold the labels, in various classes."""


def open_torchvision(name: str, root: str | None) -> LabeledSource:
    """Open the test split of `torchvision.datasets.NAME`, whose files are in `root` or come into a cache.

    Raises UserError for an unknown name, a dataset without a test split or with other labels than one class
    per image, and files that are missing and cannot be downloaded.
    """
    dataset = _dataset(name, Path(root) if root else CACHE)
    image, label = dataset[0]
    if not isinstance(image, Image.Image) or not isinstance(label, int | np.integer):
        raise UserError(f"{PREFIX}{name} does not give an image and the number of its class; choose another")
    labels = _labels(dataset)

    def read() -> Iterator[Encoded]:
        for row in range(len(labels)):
            where = f"{PREFIX}{name}: image {row}"
            try:
                image, label = dataset[row]
            except (OSError, ValueError, SyntaxError) as error:
                raise UserError(f"{where} cannot be read ({error}); download the dataset again") from error
            assert label == labels[row], where
            yield Encoded(where, image)

    return LabeledSource(
        format="torchvision",
        labels=labels,
        class_names=_class_names(dataset),
        read=read,
        has_own_order=True,
    )


def _dataset(name: str, root: Path) -> Any:
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name, None)
    if name not in torchvision.datasets.__all__ or not isinstance(kind, type):
        raise UserError(
            f"evaluate.data: torchvision has no dataset '{name}'; torchvision.datasets lists them"
        )
    known = inspect.signature(kind).parameters
    split: dict[str, Any] = {}
    if "train" in known:
        split = {"train": False}
    elif "split" in known:
        split = {"split": "val" if name in VALIDATION else "test"}
    else:
        raise UserError(f"evaluate.data: {PREFIX}{name} has no test split; choose another")
    try:
        return kind(str(root), **split)
    except Exception as error:  # each class has its own way to say that files are missing
        if "download" not in known:
            raise _not_opened(name, root, error) from error
    logger.info("%s%s: downloading into %s", PREFIX, name, root)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        root.mkdir(parents=True, exist_ok=True)
        return kind(str(root), **split, download=True)
    except Exception as error:
        raise _not_opened(name, root, error) from error
    finally:
        socket.setdefaulttimeout(before)


def _not_opened(name: str, root: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(
        f"evaluate.data: {PREFIX}{name} cannot be opened in {root} ({reason}); "
        "set evaluate.root to the folder of its files"
    )


def _labels(dataset: Any) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the labels [N], from the dataset's own list if it has one, else by reading every image."""
    for name in LABELS:
        found = getattr(dataset, name, None)
        if found is not None and len(found) == len(dataset):
            return np.asarray(found, np.int64)
    return np.array([int(dataset[row][1]) for row in range(len(dataset))], np.int64)


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """Return the names of the classes, or None; several names of one class are joined, as ImageNet's."""
    names = getattr(dataset, "classes", None)
    if not names:
        return None
    return tuple(name if isinstance(name, str) else ", ".join(map(str, name)) for name in names)
