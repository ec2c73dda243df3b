"""Draw variations.png: a row per source with its variations, framed as kept or rejected."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from engine.atomic import replacing
from engine.stages.batch import ImageBatch
from engine.stages.filter import FilterResult

ROWS, COLUMNS = 20, 10
CELL = 96
"""Side in pixels to which smaller images are enlarged, approximately, by a whole factor."""
FRAME, GAP, CAPTION, MARGIN, FONT_SIZE = 4, 10, 18, 14, 12
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (150, 150, 150)
KEPT, REJECTED = (38, 150, 84), (208, 60, 52)


class Examples:
    """Collects up to ROWS sources, one per class and batch, with up to COLUMNS variations each."""

    def __init__(self) -> None:
        self._rows: list[dict[str, torch.Tensor]] = []

    def add(self, sources: ImageBatch, variations: ImageBatch, result: FilterResult) -> None:
        """Take the first source of each class of this batch, until there are ROWS rows."""
        classes = sorted(set(sources.labels.tolist()))
        for label in classes:
            if len(self._rows) >= ROWS:
                return
            source = int((sources.labels == label).nonzero()[0])
            children = (variations.parents == sources.keys[source]).nonzero()[:COLUMNS, 0]
            self._rows.append(
                {
                    "source": sources.images[source].clone(),
                    "label": sources.labels[source].clone(),
                    "variations": variations.images[children],
                    "similarity": result.similarity[children],
                    "kept": result.kept[children],
                }
            )

    def save(self, path: Path, class_names: Sequence[str]) -> None:
        """Write the picture, unless nothing was augmented."""
        if not self._rows:
            return
        columns = {name: torch.stack([row[name] for row in self._rows]) for name in self._rows[0]}
        save_grid(
            path,
            columns["source"],
            columns["variations"],
            columns["similarity"],
            columns["kept"],
            columns["label"],
            class_names,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows = state["rows"]


def save_grid(
    path: Path,
    sources: Tensor,
    variations: Tensor,
    similarity: Tensor,
    kept: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
) -> None:
    """Write a PNG with a row per source: the source above its class name, variations above their similarity.

    Args:
        sources: uint8 [N, 3, H, W].
        variations: uint8 [N, K, 3, H', W'].
        similarity: float [N, K], NaN if not measured.
        kept: bool [N, K]; the frame is green if true, red if false.
        labels: int64 [N].
    """
    num_rows, num_variations = kept.shape
    scale = max(1, round(CELL / sources.shape[-1]))
    width, height = sources.shape[-1] * scale, sources.shape[-2] * scale
    step_x, step_y = width + 2 * FRAME + GAP, height + 2 * FRAME + CAPTION + GAP
    first = MARGIN + step_x + 2 * GAP  # left edge of the variations
    size = (first + num_variations * step_x - GAP + MARGIN, 2 * MARGIN + num_rows * step_y - GAP)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for row in range(num_rows):
        top = MARGIN + row * step_y
        name = class_names[int(labels[row])]
        _cell(canvas, draw, (MARGIN, top), _picture(sources[row], width, height), PAPER, name, INK)
        for k in range(num_variations):
            value, frame = float(similarity[row, k]), KEPT if kept[row, k] else REJECTED
            caption, ink = ("-", FAINT) if math.isnan(value) else (f"{value:.2f}", frame)
            picture = _picture(variations[row, k], width, height)
            _cell(canvas, draw, (first + k * step_x, top), picture, frame, caption, ink)
    with replacing(path) as temporary:
        canvas.save(temporary)


def _picture(image: Tensor, width: int, height: int) -> Image.Image:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return picture.resize((width, height), Image.Resampling.NEAREST)


def _cell(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    picture: Image.Image,
    frame: tuple[int, int, int],
    caption: str,
    ink: tuple[int, int, int],
) -> None:
    """Draw a framed picture with its caption centred below. `corner` is the top left of the frame."""
    left, top = corner
    right, bottom = left + picture.width + 2 * FRAME, top + picture.height + 2 * FRAME
    draw.rectangle((left, top, right - 1, bottom - 1), fill=frame)
    canvas.paste(picture, (left + FRAME, top + FRAME))
    centre = ((left + right) / 2, bottom + CAPTION / 2)
    draw.text(centre, caption, fill=ink, font=ImageFont.load_default(FONT_SIZE), anchor="mm")
