"""Settings of the filter stage."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from engine.config.checked import Checked
from engine.config.decides import decides

LOCAL_DIR = "local-dir:"
"""Prefix of an open_clip model that is a folder."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig(Checked):
    """Which variations are kept."""

    method: Literal["auto", "clip", "none"] = "auto"
    """clip measures variations by filter.criterion; none does not use CLIP and ignores the settings for it;
    auto is clip if filter.model is set."""
    model: str = ""
    """CLIP model: local-dir:FOLDER, hf-hub:OWNER/NAME, or an architecture together with filter.pretrained."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a tag or a file."""
    criterion: Literal["source", "text", "margin", "centroid"] = "source"
    """What the CLIP embedding of a variation is compared with, by cosine: source, its source (the paper's
    filter); text, the name of its class; margin, half of the cosine to that name less the largest to another
    class's; centroid, the mean of the batch's variations of its class that the teacher assigns to it, or of
    all of them if there are none."""
    omega: float | None = None
    """Minimum similarity by the criterion (the paper's figure places it between 0.45 and 0.76 for source)."""
    quantile: float | None = None
    """Instead of omega: share of each batch's variations to drop, the least similar ones."""
    per_class: bool = False
    """Drop the quantile of each class instead of the batch, so that it leaves no class without variations."""
    max_duplicate: float | None = None
    """Also drop near-copies: variations whose CLIP cosine to an earlier kept variation of the same class and
    batch is above this; null allows them."""
    class_gate: bool = True
    """Also require that the teacher's top-1 class is the label."""
    min_confidence: float = 0.0
    """Minimum probability of the teacher's top-1 class, for the class gate."""
    micro_batch: int | Literal["auto"] = field(default=256, metadata=decides("images", "execution"))
    """Images embedded or classified at once; auto measures the fastest number on this machine and caches
    it."""

    @property
    def images_at_once(self) -> int:
        """`micro_batch` of a resolved recipe."""
        assert self.micro_batch != "auto"
        return self.micro_batch

    @property
    def needs_texts(self) -> bool:
        """Whether the filter of a resolved recipe compares with the class names."""
        return self.method == "clip" and self.criterion in ("text", "margin")

    def faults(self) -> Iterator[str]:
        if self.omega is not None and not -1 <= self.omega <= 1:
            yield f"filter.omega must lie in [-1, 1], got {self.omega}; it is a cosine"
        if self.quantile is not None and not 0 <= self.quantile < 1:
            yield f"filter.quantile must lie in [0, 1), got {self.quantile}; it is the share dropped"
        if self.max_duplicate is not None and not -1 < self.max_duplicate <= 1:
            yield (
                f"filter.max_duplicate must lie in (-1, 1], got {self.max_duplicate}; "
                "it is a cosine, and null allows duplicates"
            )
        if not 0 <= self.min_confidence < 1:
            yield (
                f"filter.min_confidence must lie in [0, 1), got {self.min_confidence}; it is a probability"
            )
        if self.micro_batch != "auto" and self.micro_batch < 1:
            yield f"filter.micro_batch must be at least 1, got {self.micro_batch}"

    def contradictions(self) -> Iterator[str]:
        asks_for_clip = (
            bool(self.model)
            or self.criterion != "source"
            or self.per_class
            or any(value is not None for value in (self.omega, self.quantile, self.max_duplicate))
        )
        if self.method == "none" or (self.method == "auto" and not asks_for_clip):
            return
        if self.per_class and self.quantile is None:
            yield (
                "filter.per_class is true, but filter.quantile is null; set filter.quantile, "
                "or set filter.per_class to false"
            )
        if (self.omega is None) == (self.quantile is None):
            yield (
                f"filter.omega is {self.omega} and filter.quantile is {self.quantile}; "
                "set one and leave the other null"
            )
        if not self.model:
            yield "filter.model is empty; give an open_clip model or set filter.method to none"
