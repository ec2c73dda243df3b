"""Open the feed that a configuration selects."""

import torch

from engine.config.feed import FeedConfig
from engine.config.storage import Codec
from engine.feed.dali import DaliFeed
from engine.feed.feed import Feed
from engine.feed.index import Index
from engine.feed.torch_loader import TorchFeed


def open_feed(
    config: FeedConfig,
    index: Index,
    *,
    codec: Codec,
    image_size: tuple[int, int],
    channels: int,
    batch_size: int,
    device: torch.device,
) -> Feed:
    """Open a feed of the images of `index`, which may grow later, in RGB batches on `device`.

    Use it in a `with` block, or `close` it.

    Args:
        codec: codec of all files in the banks of `index`.
        image_size: (H, W) of all images.
        channels: channels of the stored images, 3 or 1.
        batch_size: maximum number of images that are read for a batch, with those that others are mixed with.
    """
    assert config.is_resolved
    if config.kind == "torch":
        return TorchFeed(config, index, codec=codec, image_size=image_size, channels=channels, device=device)
    return DaliFeed(
        config,
        index,
        codec=codec,
        image_size=image_size,
        channels=channels,
        batch_size=batch_size,
        device=device,
    )
