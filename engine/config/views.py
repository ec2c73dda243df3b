"""How images are cropped and mirrored at random before a network sees them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Views:
    """Of one stage."""

    flip: bool = True
    """Mirror half of the images."""
    crop_padding: int = 4
    """Zeros around an image that its crop may reach into; 0: no crop."""
