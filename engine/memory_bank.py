"""The bank: the growing set of images a student is trained on."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.batch import ImageBatch
from engine.errors import UserError
from engine.files import replacing

_CONTENT = tuple(field.name for field in fields(ImageBatch))
_COLUMNS = (*_CONTENT, "teacher_top1")
_HASH_ROWS = 4096


class Sample(NamedTuple):
    """Rows drawn for one training step; `agrees` is True where the teacher's top-1 class is the label."""

    images: Tensor  # uint8 [B, 3, H, W]
    labels: Tensor  # int64 [B]
    agrees: Tensor  # bool [B]


class _ByClass(NamedTuple):
    rows: Tensor  # int64 [N], sorted by label
    starts: Tensor  # int64 [num_classes], where a class begins in `rows`
    counts: Tensor  # int64 [num_classes]
    present: Tensor  # int64, the classes that have rows


class Bank:
    """Images with their labels and the teacher's top-1 class, in CPU memory. Rows are only ever added."""

    def __init__(self, num_classes: int, image_shape: tuple[int, ...]) -> None:
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)
        self._size = 0
        self._columns = {name: torch.empty(0, dtype=torch.int64) for name in _COLUMNS}
        self._columns["images"] = torch.empty(0, *image_shape, dtype=torch.uint8)
        self._by_class: _ByClass | None = None  # made when first sampled, dropped by an addition

    def __len__(self) -> int:
        return self._size

    @property
    def images(self) -> Tensor:
        """uint8 [N, 3, H, W], a view."""
        return self._columns["images"][: self._size]

    @property
    def labels(self) -> Tensor:
        """int64 [N], a view."""
        return self._columns["labels"][: self._size]

    @property
    def teacher_top1(self) -> Tensor:
        """int64 [N], the teacher's class for each image, a view."""
        return self._columns["teacher_top1"][: self._size]

    @property
    def keys(self) -> Tensor:
        """int64 [N], unique, a view."""
        return self._columns["keys"][: self._size]

    def add(self, batch: ImageBatch, teacher_top1: Tensor) -> None:
        """Append the rows of `batch`, with teacher_top1 int64 [B]. Copies O(1) rows per row, amortised."""
        rows = {name: getattr(batch, name).cpu() for name in _CONTENT} | {"teacher_top1": teacher_top1.cpu()}
        problem = _problem(rows, self.num_classes, self.image_shape)
        assert problem is None, problem
        assert not torch.isin(rows["keys"], self.keys).any(), "a key is in the bank already"
        end = self._size + len(batch)
        self._reserve(end)
        for name, values in rows.items():
            self._columns[name][self._size : end] = values
        self._size, self._by_class = end, None

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._columns["labels"]):
            return
        capacity = max(rows, 2 * self._size)
        for name, old in self._columns.items():
            self._columns[name] = torch.empty(capacity, *old.shape[1:], dtype=old.dtype)
            self._columns[name][: self._size] = old[: self._size]

    def sample(self, batch_size: int, generator: torch.Generator, class_balance: bool) -> Sample:
        """`batch_size` rows with replacement, every draw from `generator` (CPU).

        With `class_balance` a class is drawn uniformly among those present and then a row of it; else every
        row is as likely.
        """
        assert len(self), "the bank is empty"
        if class_balance:
            rows = self._balanced_rows(batch_size, generator)
        else:
            rows = torch.randint(len(self), (batch_size,), generator=generator)
        labels = self.labels[rows]
        return Sample(self.images[rows], labels, self.teacher_top1[rows] == labels)

    def _balanced_rows(self, batch_size: int, generator: torch.Generator) -> Tensor:
        if self._by_class is None:
            counts = self.labels.bincount(minlength=self.num_classes)
            starts, present = counts.cumsum(0) - counts, counts.nonzero()[:, 0]
            self._by_class = _ByClass(self.labels.argsort(stable=True), starts, counts, present)
        rows, starts, counts, present = self._by_class
        classes = present[torch.randint(len(present), (batch_size,), generator=generator)]
        fraction = torch.rand(batch_size, generator=generator, dtype=torch.float64)  # [0, 1)
        return rows[starts[classes] + (fraction * counts[classes]).long()]

    def sha256(self) -> str:
        """Hash of images, labels, keys, parents and seeds in key order, so that additions may come in any."""
        return self._digest(_CONTENT)

    def _digest(self, names: tuple[str, ...]) -> str:
        order = self.keys.argsort()
        digest = hashlib.sha256(str((self.num_classes, self.image_shape, len(self))).encode())
        for name in names:
            digest.update(name.encode())
            for rows in order.split(_HASH_ROWS):
                digest.update(self._columns[name][rows].numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all; equal rows in equal order give equal bytes."""
        header = {"num_classes": self.num_classes, "sha256": self._digest(_COLUMNS)}
        columns = {name: column[: self._size] for name, column in self._columns.items()}
        with replacing(path) as temporary:
            save_file(columns, temporary, {"bank": json.dumps(header)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """The bank that `save` wrote. Raises UserError naming the file where it is missing or altered."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["bank"])
                columns = {name: file.get_tensor(name) for name in _COLUMNS}
            num_classes, digest = int(header["num_classes"]), header["sha256"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _unusable(path, f"{type(error).__name__}: {error}") from None
        bank = cls(num_classes, tuple(columns["images"].shape[1:]))
        problem = _problem(columns, num_classes, bank.image_shape)
        if problem is not None:
            raise _unusable(path, problem)
        bank._columns, bank._size = columns, len(columns["labels"])
        if bank._digest(_COLUMNS) != digest:
            raise _unusable(path, "its content does not match its checksum")
        return bank


def _problem(columns: dict[str, Tensor], num_classes: int, image_shape: tuple[int, ...]) -> str | None:
    """What keeps these columns from being rows of a bank, or None."""
    images = columns["images"]
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        return f"images are {images.dtype} {list(images.shape)}, not uint8 [N, 3, H, W]"
    if tuple(images.shape[1:]) != image_shape:
        return f"images are {list(images.shape[1:])}, not {list(image_shape)}"
    for name, values in columns.items():
        if name != "images" and (values.dtype != torch.int64 or values.shape != images.shape[:1]):
            return f"{name} is {values.dtype} {list(values.shape)}, not int64 [{len(images)}]"
    for name in ("labels", "teacher_top1"):
        if ((columns[name] < 0) | (columns[name] >= num_classes)).any():
            return f"{name} has a class outside 0..{num_classes - 1}"
    if len(columns["keys"].unique()) != len(images):
        return "keys are not unique"
    return None


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(
        f"bank {path} cannot be used: {' '.join(reason.split())}; restore it or begin in a new folder"
    )
