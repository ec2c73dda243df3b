"""What the student is fed."""

from typing import NamedTuple

from torch import Tensor


class FeedBatch(NamedTuple):
    """The images of a step, cropped and mirrored, on the student's device."""

    images: Tensor
    """Floating [B, 3, H, W] in [0, 1], channels_last."""
    labels: Tensor
    """int64 [B]."""
    agrees: Tensor
    """bool [B]: where the teacher's top-1 is the label."""
    relative_agreement: float = 1.0
    """Share of agreeing images over that of the global batch, of which this may be one rank's part; 1 if none
    agrees."""
