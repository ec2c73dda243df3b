"""Opens the feed that a configuration names."""

from dataclasses import replace
from importlib.util import find_spec

import torch

from engine.errors import UserError
from engine.feed.config import FeedConfig
from engine.feed.dali import DaliFeed
from engine.feed.feed import Feed
from engine.feed.index import Index
from engine.feed.loader import TorchFeed


def settled(config: FeedConfig) -> FeedConfig:
    """The configuration with `auto` replaced by the kind that is installed.

    Raises UserError for DALI where it is not.
    """
    installed = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    if config.kind == "dali" and not installed:
        raise UserError(
            "feed.kind dali: the package is not installed; pip install 'dda-engine[dali]', or take "
            "--feed.kind torch"
        )
    return replace(config, kind="dali" if installed and config.kind != "torch" else "torch")


def open_feed(
    config: FeedConfig,
    index: Index,
    *,
    codec: str,
    image_size: tuple[int, int],
    batch_size: int,
    device: torch.device,
) -> Feed:
    """The feed of the images of `index`, which may grow, as batches of at most `batch_size` on `device`.

    `codec` and `image_size`, height and width, are those of all its banks; `close` it, or use it in a `with`.
    """
    used = settled(config)
    if used.kind == "torch":
        return TorchFeed(used, index, codec=codec, image_size=image_size, device=device)
    return DaliFeed(used, index, codec=codec, image_size=image_size, batch_size=batch_size, device=device)
