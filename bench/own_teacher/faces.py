"""The font faces of the glyph data set, and their split.

The fonts come from Debian packages. Their licences (SIL OFL, GPL with font exception, Bitstream Vera, Apache,
GUST, LPPL and others) are in usr/share/doc/PACKAGE/copyright of each package; all are free to render with.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from engine.errors import UserError

GLYPHS = "abdegknpqs"
# fmt: off
PACKAGES = (
    "adf-accanthis", "adf-baskervald", "adf-berenis", "adf-gillius", "adf-libris", "adf-mekanus",
    "adf-romande", "adf-switzera", "adf-tribun", "adf-universalis", "adf-verana", "agave", "anonymous-pro",
    "averia-sans-gwf", "averia-serif-gwf", "b612", "beteckna", "breip", "cabin", "cantarell", "clear-sans",
    "comfortaa", "comic-neue", "courier-prime", "crosextra-caladea", "dancingscript", "dejavu-core",
    "dosis", "ebgaramond", "fantasque-sans", "firacode", "freefont-ttf", "georgewilliams", "go",
    "goudybookletter", "inconsolata", "inter", "jetbrains-mono", "jura", "karla", "lato", "league-mono",
    "liberation", "linuxlibertine", "lobstertwo", "manrope", "mononoki", "oldstandard", "open-sans",
    "opendyslexic", "paratype", "play", "prociono", "quattrocento", "quicksand", "roboto-unhinted",
    "roboto-slab", "sil-andika", "sil-charis", "tuffy", "urw-base35", "vollkorn", "yanone-kaffeesatz",
)
# fmt: on
"""Names of the packages without their `fonts-`."""
NOT_LETTERS = ("D050000L", "StandardSymbolsPS", "LinLibertine_I", "LinBiolinum_K")
"""Files whose letters are ornaments, Greek, framed initials or keys."""
UNLIKE_CAPITALS = "abdegnqr"
"""Letters that a face with capitals in their place gives away."""
TEST_SHARE = 0.2
MASK_SIZE = 96
"""Font size of the masks in pixels, over four times what the images show."""


@dataclass(frozen=True, kw_only=True)
class Face:
    """A font file, and its glyphs cut out."""

    package: str
    family: str
    file: Path
    sha256: str
    masks: Mapping[str, NDArray[np.uint8]]
    """Coverage of each glyph, [H, W], cropped to its ink."""


def faces(folders: Mapping[str, Path], glyphs: str = GLYPHS) -> list[Face]:
    """Return the faces below the folder of each package that draw all `glyphs` as lower-case letters.

    A face that draws the same as one before it is left out.
    """
    found: list[Face] = []
    drawn: set[bytes] = set()
    for package, folder in sorted(folders.items()):
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() not in (".ttf", ".otf") or file.is_symlink() or file.stem in NOT_LETTERS:
                continue
            face = _face(package, file, glyphs)
            if face is None:
                continue
            picture = b"".join(mask.tobytes() for mask in face.masks.values())
            if picture not in drawn:
                drawn.add(picture)
                found.append(face)
    return found


def split(found: Sequence[Face], seed: int) -> tuple[list[Face], list[Face]]:
    """Return the faces for training and those for the test: whole packages, TEST_SHARE of them for the test.

    A family that is in packages of both goes to training alone. Raises UserError if either has no face.
    """
    packages = sorted({face.package for face in found})
    random.Random(seed).shuffle(packages)
    test = set(packages[: round(TEST_SHARE * len(packages))])
    train_families = {face.family for face in found if face.package not in test}
    for_test = [face for face in found if face.package in test and face.family not in train_families]
    for_train = [face for face in found if face.package not in test]
    if not for_train or not for_test:
        raise UserError(
            f"{len(found)} usable font faces in {len(packages)} packages are too few to split; add packages"
        )
    return for_train, for_test


def weights(chosen: Sequence[Face]) -> NDArray[np.float64]:
    """Return the probability of each face, [len(chosen)]: families are equally likely, then their faces."""
    counts = Counter(face.family for face in chosen)
    return np.array([1 / (len(counts) * counts[face.family]) for face in chosen])


def _face(package: str, file: Path, glyphs: str) -> Face | None:
    font = ImageFont.truetype(str(file), MASK_SIZE, layout_engine=ImageFont.Layout.BASIC)
    masks = {glyph: _mask(font, glyph) for glyph in glyphs}
    missing = _mask(font, "\U0010fffd")  # a private-use character, so what fonts draw for a missing one
    if any(mask.size == 0 or np.array_equal(mask, missing) for mask in masks.values()):
        return None
    if all(_alike(masks[glyph], _mask(font, glyph.upper())) for glyph in glyphs if glyph in UNLIKE_CAPITALS):
        return None  # capitals or small capitals
    return Face(
        package=package,
        family=str(font.getname()[0]),
        file=file,
        sha256=sha256(file.read_bytes()).hexdigest(),
        masks=masks,
    )


def _mask(font: ImageFont.FreeTypeFont, character: str) -> NDArray[np.uint8]:
    canvas = Image.new("L", (4 * MASK_SIZE, 3 * MASK_SIZE))
    ImageDraw.Draw(canvas).text((MASK_SIZE, MASK_SIZE), character, font=font, fill=255)
    box = canvas.getbbox()
    return np.asarray(canvas.crop(box)) if box else np.zeros((0, 0), np.uint8)


def _alike(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    if b.size == 0:
        return False
    small = [np.asarray(Image.fromarray(mask).resize((16, 16)), np.float32) / 255 for mask in (a, b)]
    return bool(np.abs(small[0] - small[1]).mean() < 0.12)
