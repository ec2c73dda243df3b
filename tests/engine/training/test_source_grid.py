"""The picture of a run without a prior: which images it shows, and where."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from engine.bank.reader import BankReader
from engine.training.examples import CAPTION, COLUMNS, GAP, MARGIN, ROWS
from engine.training.source_grid import SEVERAL, save_sources


class Bank:
    """Shards of plain images whose grey value counts up; every other row is a rejected variation."""

    def __init__(self, labels: Sequence[Sequence[int]], side: int = 32) -> None:
        self.numbers, self._labels, self._side = list(range(len(labels))), labels, side
        self._first = np.cumsum([0, *map(len, labels)])

    def rows(self, number: int) -> Any:
        labels = np.repeat(self._labels[number], 2)
        kept = np.arange(len(labels)) % 2 == 0
        return SimpleNamespace(labels=labels, parents=np.where(kept, -1, 0), kept=kept)

    def images(self, number: int, positions: Sequence[int]) -> np.ndarray:
        values = (self._first[number] + np.array(positions)).astype(np.uint8)
        return np.broadcast_to(values[:, None, None, None], (len(values), self._side, self._side, 3)).copy()


def draw(path: Path, bank: Bank, names: Sequence[str]) -> np.ndarray:
    save_sources(path, cast(BankReader, bank), names)
    with Image.open(path) as picture:
        return np.array(picture)


def shown(canvas: np.ndarray, side: int = 96) -> list[list[int]]:
    """Return the grey values of the images of a picture with one class per row."""
    tops = range(MARGIN, canvas.shape[0] - side, side + CAPTION + 2 * GAP)
    lefts = range(MARGIN, canvas.shape[1] - side, side + GAP)
    return [[int(canvas[top + side // 2, left + side // 2, 0]) for left in lefts] for top in tops]


def test_each_class_has_a_row_of_images_from_the_whole_run_in_order(tmp_path: Path) -> None:
    rows = shown(draw(tmp_path / "s.png", Bank([[1, 0], [0, 1]] * 3), ["bag", "coat"]))
    assert rows == [[1, 2, 5, 6, 9, 10], [0, 3, 4, 7, 8, 11]]
    rows = shown(draw(tmp_path / "s.png", Bank([[0, 1]] * 100), ["bag", "coat"]))
    assert rows == [list(range(0, 200, 20)), list(range(1, 200, 20))]


def test_the_class_name_is_below_and_cut_to_the_width(tmp_path: Path) -> None:
    bank, below = Bank([[0]]), slice(MARGIN + 96, MARGIN + 96 + CAPTION)
    canvas = draw(tmp_path / "s.png", bank, ["bag"])
    assert (canvas[below] != 255).any()
    long = draw(tmp_path / "s.png", bank, ["a long name " * 9])
    assert long.shape == canvas.shape
    assert (long[below, :-MARGIN] != 255).any()
    assert (long[below, -MARGIN:] == 255).all()


@pytest.mark.parametrize("side", [28, 224])
@pytest.mark.parametrize("each", [1, 3, 12])
def test_many_classes_and_large_images_stay_within_a_page(tmp_path: Path, side: int, each: int) -> None:
    bank = Bank([list(range(1000))] * each, side)
    height, width, _ = draw(tmp_path / "s.png", bank, list(map(str, range(1000)))).shape
    assert height <= 2 * MARGIN + ROWS * (128 + CAPTION + 2 * GAP)
    assert width <= 2 * MARGIN + COLUMNS * (128 + 3 * GAP)


def test_more_classes_than_rows_share_the_rows(tmp_path: Path) -> None:
    names = list(map(str, range(2 * ROWS)))
    canvas = draw(tmp_path / "s.png", Bank([list(range(2 * ROWS))] * 12), names)
    side_by_side = 2 * (SEVERAL * (96 + GAP) - GAP) + 3 * GAP
    assert canvas.shape[1] == 2 * MARGIN + side_by_side
    assert canvas.shape[0] == 2 * MARGIN + ROWS * (96 + CAPTION + 2 * GAP) - 2 * GAP


def test_without_images_there_is_no_picture(tmp_path: Path) -> None:
    save_sources(tmp_path / "s.png", cast(BankReader, Bank([])), ["bag"])
    assert not (tmp_path / "s.png").exists()
