"""The picture of sources and variations, checked pixel by pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.training.examples import CAPTION, FRAME, GAP, KEPT, MARGIN, PAPER, REJECTED, save_grid

SCALE = 3  # 32 pixels are drawn as 96
STEP_X, STEP_Y = 96 + 2 * FRAME + GAP, 96 + 2 * FRAME + CAPTION + GAP
FIRST = MARGIN + STEP_X + 2 * GAP


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    sources = torch.randint(0, 256, (2, 3, 32, 32), generator=draw, dtype=torch.uint8)
    return sources, torch.randint(0, 256, (2, 3, 3, 32, 32), generator=draw, dtype=torch.uint8)


def _save(path: Path, pictures: tuple[torch.Tensor, torch.Tensor], kept: torch.Tensor) -> torch.Tensor:
    similarity = torch.tensor([[0.1, 0.5, float("nan")], [0.9, -0.2, 1.0]])
    save_grid(path, *pictures, similarity, kept, torch.tensor([1, 0]), ["bag", "coat"])
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture))


def test_images_are_placed_in_rows_and_enlarged_by_a_whole_factor(tmp_path: Path, pictures) -> None:
    canvas = _save(tmp_path / "grid.png", pictures, torch.ones(2, 3, dtype=torch.bool))
    sources, variations = pictures
    for row in range(2):
        top = MARGIN + row * STEP_Y + FRAME
        lefts = [MARGIN + FRAME, *(FIRST + k * STEP_X + FRAME for k in range(3))]
        for left, image in zip(lefts, [sources[row], *variations[row]], strict=True):
            shown = canvas[top : top + 96 : SCALE, left : left + 96 : SCALE]
            assert torch.equal(shown, image.permute(1, 2, 0))
            assert torch.equal(canvas[top + 1, left : left + 96], canvas[top, left : left + 96])


def test_frames_show_kept_and_rejected_and_sources_have_none(tmp_path: Path, pictures) -> None:
    kept = torch.tensor([[True, False, True], [False, True, False]])
    canvas = _save(tmp_path / "grid.png", pictures, kept)
    for row in range(2):
        top = MARGIN + row * STEP_Y
        assert canvas[top, MARGIN].tolist() == list(PAPER)
        for k in range(3):
            colour = KEPT if kept[row, k] else REJECTED
            left = FIRST + k * STEP_X
            for y, x in ((top, left), (top + 96 + 2 * FRAME - 1, left + 96 + 2 * FRAME - 1)):
                assert canvas[y, x].tolist() == list(colour)


def test_captions_are_drawn_below(tmp_path: Path, pictures) -> None:
    canvas = _save(tmp_path / "grid.png", pictures, torch.ones(2, 3, dtype=torch.bool))
    top = MARGIN + 96 + 2 * FRAME
    for left in (MARGIN, *(FIRST + k * STEP_X for k in range(3))):
        caption = canvas[top : top + CAPTION, left : left + 96 + 2 * FRAME]
        assert (caption != 255).any()


def test_large_images_keep_their_size(tmp_path: Path) -> None:
    sources = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    one = torch.ones(1, 1)
    save_grid(tmp_path / "g.png", sources, sources[:, None], one, one.bool(), torch.tensor([0]), ["bag"])
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.width == 2 * MARGIN + 2 * GAP + 2 * (128 + 2 * FRAME) + GAP
