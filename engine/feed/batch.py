"""What the feed hands to the student's training."""

from typing import NamedTuple

from torch import Tensor


class FeedBatch(NamedTuple):
    """One step's augmented images, on the student's device."""

    images: Tensor  # float [B, 3, H, W] in [0, 1], channels_last, in the feed's dtype
    labels: Tensor  # int64 [B]
    agrees: Tensor  # bool [B], where the teacher's top-1 is the label
