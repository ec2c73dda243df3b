"""Random crops and mirror images that the networks see."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Views:
    """The random views of one stage."""

    flip: bool = True
    """Mirror half of the images."""
    crop_padding: int = 4
    """Pixels of zero padding that the crop may reach into; 0 turns the crop off."""


@dataclass(frozen=True, kw_only=True)
class StoredViews(Views):
    """The views of each image that the teacher has seen, and whose outputs are stored."""

    count: int
    """Views of an image. With a larger number, the first views stay the same."""
    mixup: float = 0.0
    """Share of the views that are mixed with another image of the shard."""
    seed: int = 0
    """Seed of all draws."""
    teacher_flip: bool = False
    """The outputs are means over each view and its mirror image."""

    def include(self, wanted: "StoredViews") -> bool:
        """Return whether the wanted views are among these."""
        return self.count >= wanted.count and self == replace(wanted, count=self.count)
