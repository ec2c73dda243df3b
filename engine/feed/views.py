"""The stored views of an image: crop, flip and mix of view k, as a pure function of (seed, key, k)."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.bank.rows import Int
from engine.config.views import StoredViews
from engine.feed.shuffle import Offsets, UInt, crop_parameters, hash64

_PURPOSE = 0x7669657773
"""Keeps these draws apart from the sampler's."""


class Crops(NamedTuple):
    """Crop and flip of N images."""

    top: Offsets
    """int32 [N], crop offset in the padded image, in [0, 2 * padding]."""
    left: Offsets
    """int32 [N], like `top`."""
    flip: npt.NDArray[np.bool_]
    """[N], whether the crop is mirrored."""


class Partners(NamedTuple):
    """The images that some views are mixed with: view = weight · own + (1 - weight) · partner.

    This is mixup (Zhang et al., ICLR 2018, arXiv 1710.09412) without its labels: the teacher labels the
    result.
    """

    mixed: Int
    """[M], positions of the mixed views in their batch, ascending."""
    positions: Int
    """[M], position of each partner among the kept images of its shard."""
    weights: npt.NDArray[np.float32]
    """[M], weight of the image itself, in [0, 1)."""


def crops(config: StoredViews, seeds: UInt, keys: Int, views: Int) -> Crops:
    """Return the crops of views of images, all arguments [N]. Every second view of an image is mirrored."""
    top, left, _ = crop_parameters(hash64(_PURPOSE, seeds, keys, views), pad=config.crop_padding)
    first = hash64(_PURPOSE, seeds, keys) + views.astype(np.uint64)
    return Crops(top, left, (first % np.uint64(2) == 1) & config.flip)


def partners(config: StoredViews, seeds: UInt, keys: Int, views: Int, positions: Int, sizes: Int) -> Partners:
    """Return the partners of views of images, all arguments [N].

    A partner is seen in its own view of the same number. Which views are mixed depends on their number alone.

    Args:
        positions: of the images among the kept images of their shards.
        sizes: number of kept images of their shards.
    """
    mixed = np.flatnonzero(_is_mixed(config, views))
    bits, others = hash64(_PURPOSE, seeds[mixed], keys[mixed], views[mixed]), sizes[mixed]
    steps = 1 + (hash64(bits, 1) % np.maximum(others - 1, 1).astype(np.uint64)).astype(np.int64)
    weights = (hash64(bits, 2) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    return Partners(mixed, (positions[mixed] + steps) % others, weights)


def unmixed_views(config: StoredViews) -> Int:
    """Return the numbers of the views that are not mixed, ascending."""
    numbers = np.arange(config.count)
    return numbers[~_is_mixed(config, numbers)]


def _is_mixed(config: StoredViews, views: Int) -> npt.NDArray[np.bool_]:
    before, after = (np.floor(config.mixup * number + 1e-9) for number in (views, views + 1))
    return after > before


def mix(images: Tensor, mixed: Int, weights: npt.NDArray[np.float32]) -> Tensor:
    """Mix the views in place with their partners, which follow them; return the views alone.

    Args:
        images: floating [B + M, ...]: the B images of a batch, then the partner of each mixed one.
    """
    own = images[: len(images) - len(mixed)]
    if len(mixed):
        chosen = torch.from_numpy(mixed).to(images.device)
        weight = torch.from_numpy(weights).to(images.device).view(-1, *[1] * (images.ndim - 1))
        own[chosen] = torch.lerp(images[len(own) :].float(), own[chosen].float(), weight).to(images.dtype)
    return own
