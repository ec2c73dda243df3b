"""Random crops and mirror images that the networks see."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Views:
    """The random views of one stage."""

    flip: bool = True
    """Mirror half of the images."""
    crop_padding: int = 4
    """Pixels of zero padding that the crop may reach into; 0 turns the crop off."""
