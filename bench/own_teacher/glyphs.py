"""The grey data set: ten lower-case letters, 28 pixels, in the fonts of `faces`.

No font of the test images, and no other face of its package, is among those of the training images.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from bench.own_teacher import image_folder
from bench.own_teacher.faces import GLYPHS, PACKAGES, Face, faces, split, weights
from bench.own_teacher.packages import debian

SIZE = 28
SCALE = 4
"""Images are drawn this many times larger, then averaged."""


def make(out: Path, cache: Path, *, train: int, test: int, seed: int) -> Iterator[str]:
    """Write `train` and `test` images into `out`, and yield a line for each split."""
    parts = dict(
        zip(
            image_folder.SPLITS,
            split(faces(debian([f"fonts-{name}" for name in PACKAGES], cache)), seed),
            strict=True,
        )
    )
    for name, count in zip(image_folder.SPLITS, (train, test), strict=True):
        chosen = parts[name]
        about = {
            "seed": seed,
            "faces": [[face.package, face.family, face.file.name, face.sha256] for face in chosen],
        }
        named = (
            (glyph, f"{i:05d}", image) for i, (glyph, image) in enumerate(images(chosen, count, name, seed))
        )
        written = image_folder.write(out, name, named, about)
        families = len({face.family for face in chosen})
        yield f"{out / name}: {written} images of {len(chosen)} faces in {families} families"


def images(
    chosen: Sequence[Face], count: int, name: str, seed: int
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield `count` (glyph, image uint8 [28, 28]) in the given faces, the same for the same name and seed."""
    probabilities = weights(chosen)
    for index in range(count):
        rng = np.random.default_rng([seed, image_folder.SPLITS.index(name), index])
        glyph = GLYPHS[index % len(GLYPHS)]
        face = chosen[rng.choice(len(chosen), p=probabilities)]
        yield glyph, render(face.masks[glyph], rng)


def render(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a glyph light on dark: size, place, turn, shear, weight, blur, contrast and noise are random."""
    canvas = SIZE * SCALE
    zoom = SCALE * rng.uniform(11, 22) / max(mask.shape)
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    angle, shear = np.radians(rng.uniform(-15, 15)), rng.uniform(-0.35, 0.35)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = zoom * turn @ np.array([[1, shear], [0, 1]]) @ np.diag([stretch, 1 / stretch])
    back = np.linalg.inv(forward)
    centre = canvas / 2 + SCALE * rng.uniform(-2.5, 2.5, 2)
    shift = np.array(mask.shape[::-1]) / 2 - back @ centre
    matrix = (*back[0], shift[0], *back[1], shift[1])
    drawn = Image.fromarray(mask).transform(
        (canvas, canvas), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    thicker = int(rng.integers(0, 3))
    if thicker:
        drawn = drawn.filter(ImageFilter.MaxFilter(2 * thicker + 1))
    drawn = drawn.filter(ImageFilter.GaussianBlur(SCALE * rng.uniform(0, 1.3))).reduce(SCALE)
    ground, ink = rng.uniform(0, 0.3), rng.uniform(0.45, 1)
    grey = ground + (ink - ground) * np.asarray(drawn, np.float32) / 255
    grey = grey + rng.uniform(0, 0.15) * rng.standard_normal(grey.shape)
    return (grey.clip(0, 1) * 255).round().astype(np.uint8)
