"""The colour data set: emoji at 64 pixels, the category as class, one vendor held out as the test images.

The pictures come from the npm packages emoji-datasource-VENDOR. The MIT licence of these is for their data:
Google's pictures are under Apache-2.0 or SIL OFL, Twitter's under CC BY 4.0, and those of Apple and Facebook
belong to these companies. Use them only to measure, on the machine that fetched them; publish neither them
nor anything made from them.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.own_teacher import image_folder
from bench.own_teacher.packages import npm
from engine.errors import UserError

VENDORS = ("google", "twitter", "facebook", "apple")
VERSION = "16.0.0"
SIZE = 64
LEFT_OUT = ("Component",)
"""Categories that are too small for a class."""


def make(out: Path, cache: Path, *, held_out: str) -> Iterator[str]:
    """Write the emoji of `held_out` as test images, the others as training images; yield a line each.

    Raises UserError for an unknown vendor.
    """
    if held_out not in VENDORS:
        raise UserError(f"--held-out has '{held_out}'; choose from {', '.join(VENDORS)}")
    vendors = {"train": [vendor for vendor in VENDORS if vendor != held_out], "test": [held_out]}
    for name in image_folder.SPLITS:
        about = {"vendors": vendors[name], "version": VERSION}
        found = (image for vendor in vendors[name] for image in images(vendor, cache))
        count = image_folder.write(out, name, found, about)
        yield f"{out / name}: {count} images of {', '.join(vendors[name])}"


def images(vendor: str, cache: Path) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    """Yield (class, name, image uint8 [64, 64, 3] on white) for each emoji, without its skin tones."""
    members = ("emoji.json", "LICENSE", f"img/{vendor}/{SIZE}/")
    folder = npm(f"emoji-datasource-{vendor}", VERSION, members, cache)
    for emoji in json.loads((folder / "emoji.json").read_text(encoding="utf-8")):
        if emoji["category"] not in LEFT_OUT and emoji[f"has_img_{vendor}"]:
            label = re.sub(r"\W+", "-", emoji["category"].lower())
            pixels = _on_white(folder / "img" / vendor / str(SIZE) / emoji["image"])
            yield label, f"{vendor}-{emoji['unified'].lower()}", pixels


def _on_white(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        drawn = image.convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    return np.asarray(Image.alpha_composite(white, drawn).convert("RGB").resize((SIZE, SIZE)))
