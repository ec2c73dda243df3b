"""Draw sources.png: synthesized images of a run without a prior, class by class, above the class names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.atomic import replacing
from engine.bank.reader import BankReader
from engine.progress import one_line
from engine.training.examples import CAPTION, CELL, COLUMNS, FONT_SIZE, GAP, INK, MARGIN, PAPER, ROWS

SEVERAL = 5
"""Most images of a class if there are more than ROWS classes."""

Place = tuple[int, int]
"""An image of a bank: its shard's number, and its position among the kept images of the shard."""
Value = TypeVar("Value")


def save_sources(path: Path, bank: BankReader, class_names: Sequence[str]) -> None:
    """Write a PNG of synthesized images from the whole run, class by class, above the names of the classes.

    It has at most ROWS rows and COLUMNS columns: of many classes, some, and of each up to COLUMNS or SEVERAL
    images.
    """
    places = _places(bank)
    longest = max(map(len, places.values()), default=0)
    several = min(longest, COLUMNS if len(places) <= ROWS else SEVERAL)
    if several == 0:
        return
    chosen = {
        label: _spread(places[label], several)
        for label in _spread(sorted(places), ROWS * (COLUMNS // several))
    }
    images = _read(bank, [place for found in chosen.values() for place in found])
    blocks = [
        (one_line(class_names[label]), [images[place] for place in found]) for label, found in chosen.items()
    ]
    canvas = _blocks(blocks, several)
    with replacing(path) as temporary:
        canvas.save(temporary)


def _places(bank: BankReader) -> dict[int, list[Place]]:
    """Return the synthesized images of each class, in the order in which they were made."""
    places: dict[int, list[Place]] = {}
    for number in bank.numbers:
        rows = bank.rows(number)
        labels, parents = rows.labels[rows.kept], rows.parents[rows.kept]
        for position in np.flatnonzero(parents < 0).tolist():
            places.setdefault(int(labels[position]), []).append((number, position))
    return places


def _spread(values: Sequence[Value], count: int) -> list[Value]:
    """Return at most `count` of the values, evenly spread."""
    count = min(count, len(values))
    return [values[len(values) * index // count] for index in range(count)]


def _read(bank: BankReader, places: Sequence[Place]) -> dict[Place, Image.Image]:
    images: dict[Place, Image.Image] = {}
    for number in sorted({number for number, _ in places}):
        positions = [position for shard, position in places if shard == number]
        for position, pixels in zip(positions, bank.images(number, positions), strict=True):
            images[number, position] = Image.fromarray(pixels)
    return images


def _blocks(blocks: Sequence[tuple[str, Sequence[Image.Image]]], several: int) -> Image.Image:
    """Draw blocks of up to `several` images side by side, each above its caption."""
    width, height = _shown_size(*blocks[0][1][0].size)
    per_row = min(COLUMNS // several, len(blocks))
    block_width = several * (width + GAP) - GAP
    step_x, step_y = block_width + 3 * GAP, height + CAPTION + 2 * GAP
    rows = -(-len(blocks) // per_row)
    canvas = Image.new(
        "RGB", (2 * MARGIN + per_row * step_x - 3 * GAP, 2 * MARGIN + rows * step_y - 2 * GAP), PAPER
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    for index, (name, images) in enumerate(blocks):
        row, column = divmod(index, per_row)
        left, top = MARGIN + column * step_x, MARGIN + row * step_y
        for k, image in enumerate(images):
            canvas.paste(_resized(image, width, height), (left + k * (width + GAP), top))
        caption = _shortened(name, block_width, font)
        draw.text((left, top + height + CAPTION / 2), caption, fill=INK, font=font, anchor="lm")
    return canvas


def _shown_size(width: int, height: int) -> tuple[int, int]:
    """Return the size after enlarging or reducing by a whole factor, to a longer side of about CELL."""
    longer = max(width, height)
    if longer <= CELL:
        factor = round(CELL / longer)
        return width * factor, height * factor
    factor = round(longer / CELL)
    return max(1, width // factor), max(1, height // factor)


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    enlarges = width >= image.width
    return image.resize((width, height), Image.Resampling.NEAREST if enlarges else Image.Resampling.BOX)


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the text, or so much of it with an ellipsis as fits the width."""
    if font.getlength(text) <= width:
        return text
    kept = next((end for end in range(len(text) - 1, 0, -1) if font.getlength(f"{text[:end]}…") <= width), 0)
    return f"{text[:kept].rstrip()}…"
