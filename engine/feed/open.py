"""Opens the feed that a configuration names."""

import torch

from engine.bank.config import Codec
from engine.feed.config import FeedConfig, settled
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
    """The feed of the images of `index`, which may grow, as batches of at most `batch_size` on `device`.

    `codec`, `image_size` (height and width) and `channels` are those of all its banks' files; the batches are
    RGB. `close` it, or use it in a `with`.
    """
    used = settled(config)
    if used.kind == "torch":
        return TorchFeed(used, index, codec=codec, image_size=image_size, channels=channels, device=device)
    return DaliFeed(
        used,
        index,
        codec=codec,
        image_size=image_size,
        channels=channels,
        batch_size=batch_size,
        device=device,
    )
