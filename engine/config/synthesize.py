"""Settings of the synthesize stage."""

from dataclasses import dataclass
from typing import Literal

from engine.config.views import Views
from engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """The inversion of the teacher. Loss and optimizer of DDA (arXiv 2410.17606) and its released code."""

    batch_size: int = 200
    """Images optimized together; their BatchNorm statistics are matched as one batch."""
    steps: int = 200
    """Optimizer steps a batch; the images of the step with the lowest loss are kept."""
    start: Literal["reinit", "reuse", "meta"] = "reinit"
    """The generator's weights at a batch's start: redrawn, those the last batch ended with, or a meta-learned
    start that moves a little towards each batch's end (a few steps a batch are then enough)."""
    warmup_steps: int = 0
    """For reuse and meta: steps spent once, before the first batch, to leave the random start."""
    meta_rate: float = 0.5
    """For meta: how far the start moves towards where a batch ended (Reptile, arXiv 1803.02999)."""
    adversary: Literal["selfsup", "kl", "none"] = "selfsup"
    """What makes images hard in the rounds: the rotation head's error, or the student's divergence."""
    w_cls: float = 1.0
    """Weight of the cross-entropy of the teacher with the drawn label."""
    w_bn: float = 1.0
    """Weight of the BatchNorm statistics; 0 for a teacher without BatchNorm."""
    w_adv: float = 10.0
    """Weight of the adversary; the batches before the first round go without."""
    class_weights: dict[str, float] | None = None
    """How often a class is drawn, by its name; a class without a weight has 1. By default all alike."""
    latent_dim: int = 256
    """Width of the generator's input z."""
    lr: float = 1e-3
    """Learning rate of Adam (betas 0.5, 0.999) over the generator's weights and z."""
    flip: bool | None = None
    """Mirror half of the images before the teacher sees them; null: same as `distill.flip`."""
    crop_padding: int | None = None
    """Pixels of zero padding for the crop that the teacher sees; null: same as `distill.crop_padding`."""

    def views(self, *, otherwise: Views) -> Views:
        """What the teacher sees of an image; `otherwise`: if it is not set here."""
        return Views(
            flip=otherwise.flip if self.flip is None else self.flip,
            crop_padding=otherwise.crop_padding if self.crop_padding is None else self.crop_padding,
        )

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "latent_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"synthesize.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("w_cls", "w_bn", "w_adv", "warmup_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"synthesize.{name} must be 0 or above, got {getattr(self, name)}")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise UserError(f"synthesize.crop_padding must be 0 or above, got {self.crop_padding}")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"synthesize.lr must be above 0, got {self.lr}")
        if not 0 < self.meta_rate <= 1:
            raise UserError(f"synthesize.meta_rate must lie in (0, 1], got {self.meta_rate}")
        for name, weight in (self.class_weights or {}).items():
            if not 0 <= weight < float("inf"):
                raise UserError(f"synthesize.class_weights: '{name}' has {weight}; give 0 or more")
        if self.start == "reinit" and self.warmup_steps:
            raise UserError(
                f"synthesize.warmup_steps is {self.warmup_steps}, but synthesize.start reinit redraws the "
                "weights of every batch; set it to 0, or start to reuse or meta"
            )
