"""Encode and decode images. Encoding is deterministic: equal images give equal bytes."""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config.storage import Codec

Images = npt.NDArray[np.uint8]

EXTENSIONS: dict[Codec, str] = {"raw": "npy", "png": "png", "webp": "webp", "jpeg": "jpg"}
THREADS = min(4, os.cpu_count() or 1)


def encode(images: Images, codec: Codec, quality: int) -> list[bytes]:
    """Encode each of the uint8 images [K, H, W, C] as a file.

    C is 3, or 1 with any codec but webp, which has no grey mode.
    """
    if codec == "raw":
        header = npy_header(*images.shape[1:])
        return [header + image.tobytes() for image in images]
    settings = _settings(codec, quality)

    def encode_one(image: Images) -> bytes:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(file, codec, **settings)
        return file.getvalue()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(encode_one, images))


def as_stored(images: Images, codec: Codec, quality: int, channels: int) -> Images:
    """Return images [N, H, W, 3] as readers of the bank will see them: lossy codecs change them."""
    if codec in ("raw", "png"):
        return images
    decode = decoder(codec, (images.shape[1], images.shape[2]), channels)
    seen = np.empty_like(images)
    for image, data in zip(seen, encode(images[..., :channels], codec, quality), strict=True):
        image[:] = decode(data)
    return seen


def decoder(codec: Codec, size: tuple[int, int], channels: int) -> Callable[[bytes], Images]:
    """Return a function that decodes a file to uint8 [H, W, C].

    It raises ValueError if the file is not an image of `size` (H, W) with `channels` channels.
    """
    return _raw_decoder(size, channels) if codec == "raw" else _pil_decoder(codec, size, channels)


@cache
def npy_header(height: int, width: int, channels: int) -> bytes:
    """Return the 128 bytes before the pixels in a .npy file of format 1.0."""
    file = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (height, width, channels)}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def _settings(codec: Codec, quality: int) -> dict[str, Any]:
    if codec == "png":
        return {"compress_level": 6}
    if codec == "webp":
        return {"quality": quality, "method": 4, "lossless": quality == 100}
    return {"quality": quality, "subsampling": 0}


def _raw_decoder(size: tuple[int, int], channels: int) -> Callable[[bytes], Images]:
    header = npy_header(*size, channels)
    shape = (*size, channels)
    length = len(header) + size[0] * size[1] * channels

    def decode(data: bytes) -> Images:
        if len(data) != length or not data.startswith(header):
            raise ValueError(f"is not a numpy file of uint8 {list(shape)}")
        return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)

    return decode


def _pil_decoder(codec: Codec, size: tuple[int, int], channels: int) -> Callable[[bytes], Images]:
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"

    def decode(data: bytes) -> Images:
        try:
            with Image.open(io.BytesIO(data), formats=[codec]) as image:
                if image.size == size[::-1] and image.mode == mode:
                    return np.asarray(image).reshape(*size, channels)
        except Exception as error:  # PIL raises a dozen kinds for damaged and hostile files
            raise ValueError(f"cannot be decoded ({error})") from None
        kind = "a grey" if channels == 1 else "an RGB"
        raise ValueError(f"is not {kind} image of {size[0]} x {size[1]}")

    return decode
