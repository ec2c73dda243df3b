"""Settings of the synthesize stage."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.config.checked import Checked
from engine.config.views import Views

Statistics = Literal["batch_norm", "patch_similarity", "image"]


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig(Checked):
    """The inversion of the teacher, with the loss and optimizer of DDA (arXiv 2410.17606) and its code."""

    batch_size: int = 128
    """Images that are optimized together and matched to the BatchNorm statistics as one batch."""
    steps: int = 10
    """Optimizer steps per batch; the images of the step with the lowest loss are kept."""
    start: Literal["reinit", "reuse", "meta"] = "meta"
    """Initial weights of the generator for each batch: reinit draws new ones, reuse keeps the last batch's,
    meta learns an initialization from which a few steps are enough."""
    warmup_steps: int = 40
    """For reuse and meta: additional optimizer steps, once, before the first batch; reinit has no warm-up."""
    meta_rate: float = 0.5
    """For meta: how far the initialization moves towards the final weights of each batch (Reptile, arXiv
    1803.02999)."""
    adversary: Literal["selfsup", "kl", "none"] = "selfsup"
    """What makes images hard in the rounds: selfsup (the rotation head's error), kl (the student's divergence
    from the teacher) or none."""
    w_cls: float = 1.0
    """Weight of the teacher's cross-entropy with the drawn label."""
    statistics: Statistics | None = None
    """What the images must match as well as their class: batch_norm (the running statistics of the teacher's
    BatchNorms, DeepInversion, arXiv 1912.07878), patch_similarity (the entropy of the similarities between
    the patches that its attention sees, PSAQ-ViT, arXiv 2203.02250) or image (total variation and L2 norm of
    the image, DeepInversion); null takes the first of these that the teacher allows."""
    w_bn: float = 1.0
    """Weight of the statistics, whichever synthesize.statistics names."""
    w_adv: float = 10.0
    """Weight of the adversary, in the rounds only."""
    class_weights: dict[str, float] | None = None
    """Weight of a class in the draw, by its name; a class that is not named has 1. null draws all classes
    equally often."""
    latent_dim: int = 256
    """Width of the generator's input z."""
    lr: float = 1e-3
    """Learning rate of Adam (betas 0.5 and 0.999) for the generator's weights and z."""
    flip: bool | None = None
    """Mirror half of the images before the teacher sees them; null follows distill.flip."""
    crop_padding: int | None = None
    """Pixels of zero padding for the crop that the teacher sees; null follows distill.crop_padding."""

    @property
    def first_steps(self) -> int:
        """Optimizer steps before the first batch."""
        return 0 if self.start == "reinit" else self.warmup_steps

    def views(self, *, default: Views) -> Views:
        """Return the views that the teacher sees, with `default` for settings that are null."""
        return Views(
            flip=default.flip if self.flip is None else self.flip,
            crop_padding=default.crop_padding if self.crop_padding is None else self.crop_padding,
        )

    def faults(self) -> Iterator[str]:
        for name in ("batch_size", "steps", "latent_dim"):
            if getattr(self, name) < 1:
                yield f"synthesize.{name} must be at least 1, got {getattr(self, name)}"
        for name in ("w_cls", "w_bn", "w_adv", "warmup_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                yield f"synthesize.{name} must be 0 or above, got {getattr(self, name)}"
        if self.crop_padding is not None and self.crop_padding < 0:
            yield f"synthesize.crop_padding must be 0 or above, got {self.crop_padding}"
        if not 0 < self.lr < float("inf"):
            yield f"synthesize.lr must be above 0, got {self.lr}"
        if not 0 < self.meta_rate <= 1:
            yield f"synthesize.meta_rate must lie in (0, 1], got {self.meta_rate}"
        for name, weight in (self.class_weights or {}).items():
            if not 0 <= weight < float("inf"):
                yield f"synthesize.class_weights: '{name}' has {weight}; give 0 or more"
