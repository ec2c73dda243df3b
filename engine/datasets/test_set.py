"""Open the test set of a recipe: its classes matched to the recipe's, its images in batches of one size."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.config.evaluate import FASHION_MNIST, EvaluateConfig
from engine.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from engine.datasets.source import LabeledSource

logger = logging.getLogger(__name__)

KEY = "evaluate.data"
PIXELS = 64 * 224 * 224
"""Most pixels of a batch."""
MAX_BATCH = 500
SHOWN = 3
"""Most names in a message."""


@dataclass(frozen=True, kw_only=True)
class LabeledTestSet:
    """A test set whose labels have been read and matched to the recipe's classes; its images have not."""

    data: str
    """What the recipe calls it."""
    source: "LabeledSource"
    labels: NDArray[np.int64]
    """[N], indices of the recipe's `class_names`."""
    size: tuple[int, int]
    """(H, W) of the batches."""
    notes: tuple[tuple[int, str], ...]
    """Log level and text of what a user should know."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def format(self) -> str:
        """What kind of set it is."""
        return self.source.format

    def announce(self) -> None:
        """Log the notes."""
        for level, text in self.notes:
            logger.log(level, text)

    def batches(self, batch_size: int | None = None) -> "Iterator[tuple[Tensor, Tensor]]":
        """Yield images uint8 [B, 3, H, W] and labels int64 [B], in order; only one batch is in memory.

        See `engine.datasets.source.decode` for the resizing. Raises UserError that names an image that cannot
        be read.
        """
        import torch

        from engine.datasets.source import decode

        rows = batch_size or max(1, min(MAX_BATCH, PIXELS // (self.size[0] * self.size[1])))
        images, start = self.source.read(), 0
        with ThreadPoolExecutor() as pool:
            while encoded := list(islice(images, rows)):
                pixels = np.stack(list(pool.map(lambda image: decode(image, self.size), encoded)))
                labels = self.labels[start : start + len(pixels)]
                start += len(pixels)
                if len(labels) < len(pixels):
                    break
                yield torch.from_numpy(pixels), torch.from_numpy(labels)
        if start != len(self):
            raise UserError(f"{KEY}: {self.data} changed while it was read; repeat the command")


def check_test_set(config: EvaluateConfig, class_names: Sequence[str], size: tuple[int, int]) -> None:
    """Verify the test set before a run starts: its format, labels and classes; no image is decoded.

    Fashion-MNIST may be missing unless `config.root` names its folder. Raises UserError as `open_test_set`
    does.
    """
    test_set, _ = open_test_set(config, class_names, size)
    if test_set is not None:
        test_set.announce()


def open_test_set(
    config: EvaluateConfig, class_names: Sequence[str], size: tuple[int, int]
) -> tuple[LabeledTestSet | None, str | None]:
    """Return (test set, None), or (None, the reason why there is none).

    Args:
        class_names: the recipe's.
        size: (H, W) of the classifiers' images.

    Raises:
        UserError: if the set is missing or cannot be read, or its classes are not the recipe's.
    """
    if config.data is None:
        return None, f"{KEY} is null"
    try:
        source = _open(config.data, config.root, size)
    except FileNotFoundError as error:  # only of Fashion-MNIST
        if config.root:
            raise UserError(
                f"evaluate.root is {config.root}, but the files of {config.data} are not there ({error}); "
                "set it to the folder of the idx.gz files, or to null to look in the usual places"
            ) from None
        return None, str(error)
    labels, notes = match_labels(source, class_names, config.data)
    return (
        LabeledTestSet(data=config.data, source=source, labels=labels, size=size, notes=tuple(notes)),
        None,
    )


def _open(data: str, root: str | None, size: tuple[int, int]) -> "LabeledSource":
    if data == FASHION_MNIST:
        return _open_fashion_mnist(root, size)
    if data.startswith("torchvision:"):
        from engine.datasets.torchvision_sets import open_torchvision

        return open_torchvision(data.removeprefix("torchvision:"), root)
    if root is not None:
        raise UserError(f"evaluate.root is {root}, but {KEY} is a path; set evaluate.root to null")
    from engine.datasets.formats import open_path

    return open_path(data)


def _open_fashion_mnist(root: str | None, size: tuple[int, int]) -> "LabeledSource":
    """Open the verified files. Raises FileNotFoundError if they are missing."""
    from engine.datasets import fashion_mnist
    from engine.datasets.source import Encoded, LabeledSource

    if size != (32, 32):
        raise UserError(
            f"{KEY} is {FASHION_MNIST}, whose images are padded to 32x32, but the teacher takes {size[0]}x"
            f"{size[1]}; give torchvision:FashionMNIST, which is resized, or null"
        )
    test = fashion_mnist.load("test", Path(root) if root else None)
    grey = test.images[:, 0].numpy()
    return LabeledSource(
        format="idx files",
        labels=test.labels.numpy(),
        class_names=fashion_mnist.CLASS_NAMES,
        read=lambda: (Encoded(f"{FASHION_MNIST}: image {row}", image) for row, image in enumerate(grey)),
        has_own_order=True,
    )


def match_labels(
    source: "LabeledSource", class_names: Sequence[str], data: str
) -> tuple[NDArray[np.int64], list[tuple[int, str]]]:
    """Return the labels as indices of the recipe's `class_names`, and notes for the log.

    Labels without names are indices already. Names are matched by name. If the recipe's are only the numbers
    "0", "1" and so on, names that are numbers are matched by value, and other names keep the set's own order.
    Names that are numbers also keep that order if the set numbers its classes itself, or if it has as many
    classes as the recipe and some of the numbers are too large for an index.

    Raises:
        UserError: if a class of the set is none of the recipe's; the message names the first few.
    """
    present = sorted(set(source.labels.tolist()))
    notes: list[tuple[int, str]] = []
    if source.class_names is None:
        index = {label: label for label in present}
    else:
        if present[0] < 0 or present[-1] >= len(source.class_names):
            label = present[0] if present[0] < 0 else present[-1]
            raise UserError(f"{KEY}: {data} has label {label}, which no class has; give a labelled split")
        names = {label: source.class_names[label] for label in present}
        if tuple(source.class_names) == tuple(class_names):
            index = {label: label for label in present}
        elif list(class_names) == [str(number) for number in range(len(class_names))]:
            index, notes = _index_by_number(names, source, class_names, data)
        else:
            index = _index_by_name(names, class_names, data)
    for position in index.values():
        if not 0 <= position < len(class_names):
            raise UserError(
                f"{KEY}: {data} has label {position}, but class_names has {len(class_names)} classes, 0 to "
                f"{len(class_names) - 1}; give a labelled test set of these classes"
            )
    lookup = np.array([index[label] for label in present], np.int64)
    labels = lookup[np.searchsorted(present, source.labels)]
    without = [name for position, name in enumerate(class_names) if position not in set(index.values())]
    if without:
        covered = f"{len(class_names) - len(without)} of {len(class_names)} classes"
        text = f"{KEY}: {data} has images of {covered}; none of {_few(without)}"
        notes.append((logging.WARNING, text))
    return labels, notes


def _index_by_number(
    present: Mapping[int, str], source: "LabeledSource", class_names: Sequence[str], data: str
) -> tuple[dict[int, int], list[tuple[int, str]]]:
    """Return the recipe's index of each label if `class_names` are only numbers, and notes on assumptions."""
    own = source.class_names or ()
    as_many = len(own) == len(class_names)
    exceed = any(int(name) >= len(class_names) for name in own if name.isdecimal())
    if all(map(str.isdecimal, present.values())) and not (as_many and (source.has_own_order or exceed)):
        _require_distinct([str(int(name)) for name in present.values()], f"{KEY}: {data}")
        place = {name: number for number, name in enumerate(_in_text_order(own, class_names))}
        notes = []
        if not source.has_own_order and any(
            place.get(name, int(name)) != int(name) for name in present.values()
        ):
            text = (
                f"{KEY}: the classes of {data} are matched by their numbers; if the teacher counts them in "
                f"text order, as ImageFolder does, set class_names to [{_few([*place], ', ...')}]"
            )
            notes.append((logging.WARNING, text))
        return {label: int(name) for label, name in present.items()}, notes
    if not as_many:
        raise UserError(
            f"{KEY}: {data} has {len(own)} classes, but the teacher has {len(class_names)}; give a set with "
            "all of them, or set class_names to their names in the order of the teacher's logits"
        )
    return {label: label for label in present}, [_note_on_own_order(source, own, data)]


def _in_text_order(own: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Return the names of all classes in text order, written as `own` writes the numbers in `class_names`."""
    if len(own) == len(class_names):
        return sorted(own)
    padded = [len(name) for name in own if name.startswith("0") and len(name) > 1]
    return sorted(name.zfill(max(padded, default=1)) for name in class_names)


def _note_on_own_order(source: "LabeledSource", own: Sequence[str], data: str) -> tuple[int, str]:
    text = (
        f"{KEY}: class_names are only numbers, so the classes of {data} count in its own order: 0 is "
        f"'{own[0]}', {len(own) - 1} is '{own[-1]}'"
    )
    if not source.has_own_order and [*own] != sorted(own, key=str.casefold):
        upper = "upper case counts before lower case here; check that it did when the teacher was trained"
        return logging.WARNING, f"{text}; {upper}"
    by_value = sorted(own, key=int) if all(map(str.isdecimal, own)) else [*own]
    if source.has_own_order or by_value == [*own]:
        return logging.INFO, text
    order = f"if the teacher counts them by their numbers, set class_names to [{_few(by_value, ', ...')}]"
    return logging.WARNING, f"{text}; {order}"


def _index_by_name(present: Mapping[int, str], class_names: Sequence[str], data: str) -> dict[int, int]:
    """Return the recipe's index of each label."""
    _require_distinct(class_names, "class_names")
    _require_distinct(list(present.values()), f"{KEY}: {data}")
    position = {name: number for number, name in enumerate(class_names)}
    unknown = [name for name in present.values() if name not in position]
    if unknown:
        missing = [name for name in class_names if name not in set(present.values())]
        lacks = f"; it has no {_few(missing)}" if missing else ""
        raise UserError(
            f"{KEY}: {data} has {len(unknown)} of {len(present)} classes that class_names lacks: "
            f"{_few(unknown)}{lacks}; rename one or the other"
        )
    return {label: position[name] for label, name in present.items()}


def _require_distinct(names: Sequence[str], whose: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{whose} has '{name}' twice, so classes cannot be matched by name; rename one")
        seen.add(name)


def _few(names: Sequence[str], more: str = " and others") -> str:
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + (more if len(names) > SHOWN else "")
