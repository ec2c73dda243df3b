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
    """clip compares the image embeddings of a variation and its source; none keeps every variation; auto is
    clip if filter.model is set."""
    model: str = ""
    """CLIP model: local-dir:FOLDER, hf-hub:OWNER/NAME, or an architecture together with filter.pretrained."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a tag or a file."""
    omega: float | None = None
    """Minimum cosine similarity between a variation and its source (the paper's filter; its figure places it
    between 0.45 and 0.76)."""
    quantile: float | None = None
    """Instead of omega: share of each batch's variations to drop, the least similar ones."""
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

    def faults(self) -> Iterator[str]:
        if self.omega is not None and not -1 <= self.omega <= 1:
            yield f"filter.omega must lie in [-1, 1], got {self.omega}; it is a cosine"
        if self.quantile is not None and not 0 <= self.quantile < 1:
            yield f"filter.quantile must lie in [0, 1), got {self.quantile}; it is the share dropped"
        if not 0 <= self.min_confidence < 1:
            yield (
                f"filter.min_confidence must lie in [0, 1), got {self.min_confidence}; it is a probability"
            )
        if self.micro_batch != "auto" and self.micro_batch < 1:
            yield f"filter.micro_batch must be at least 1, got {self.micro_batch}"

    def contradictions(self) -> Iterator[str]:
        is_unset = not self.model and self.omega is None and self.quantile is None
        if self.method == "none" or (self.method == "auto" and is_unset):
            return
        if (self.omega is None) == (self.quantile is None):
            yield (
                f"filter.omega is {self.omega} and filter.quantile is {self.quantile}; "
                "set one and leave the other null"
            )
        if not self.model:
            yield "filter.model is empty; give an open_clip model or set filter.method to none"
