"""Image files to pixels by Pillow."""

import io

import numpy as np
import numpy.typing as npt


def decoded(encoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] of a PNG, WebP or JPEG file. Raises OSError for one that is damaged."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded.data)) as image:
        return np.asarray(image.convert("RGB"))
