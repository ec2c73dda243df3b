"""Settings of the augment stage."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.config.checked import Checked
from engine.config.decides import decides

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "ddim": ("DDIMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
}
"""Class name in diffusers, and the options that make the solver deterministic."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Checked):
    """How the diffusion prior turns sources into variations."""

    method: Literal["auto", "variation", "none"] = "auto"
    """variation makes variations with the prior; none skips it, so that the bank holds only the sources; auto
    tries the prior on one batch and skips it if the teacher does not recognize the variations."""
    prior: str = ""
    """Folder or hub id of a StableDiffusionImageVariationPipeline; its vae may be an AutoencoderTiny (TAESD).
    `python -m export` also accepts pipelines of Stable Diffusion 1.x, 2.x and XL."""
    variations: int = 12
    """Variations of each source (K)."""
    scheduler: Literal["dpmsolver++", "ddim", "unipc", "euler"] = "dpmsolver++"
    """Solver of the diffusion process; all run without added noise."""
    steps: int = 5
    """Solver steps from pure noise; with strength < 1, only the last int(steps * strength) of them run."""
    guidance_scale: float = 3.0
    """Scale of classifier-free guidance; 1 turns guidance off and halves the work."""
    guidance_of: Literal["all", "class"] = "all"
    """What guidance amplifies: all tokens, as in the published pipelines, or only the class token, which
    pulls an image to its class even if the encoder does not recognize that class."""
    strength: float = 1.0
    """1 starts from pure noise; a lower value starts from the source's latent with that much noise."""
    class_condition: Literal["none", "text"] = "none"
    """text adds the CLIP embedding of the class name as a second token after the source's."""
    micro_batch: int | Literal["auto"] = field(default=32, metadata=decides("images", "execution"))
    """Variations made at once; auto measures the fastest number on this machine and caches it."""

    @property
    def images_at_once(self) -> int:
        """`micro_batch` of a resolved recipe."""
        assert self.micro_batch != "auto"
        return self.micro_batch

    @property
    def num_tokens(self) -> int:
        """Number of tokens that condition an image: the source's, and the class's for text conditioning."""
        return 1 if self.class_condition == "none" else 2

    def faults(self) -> Iterator[str]:
        for name in ("variations", "steps", "micro_batch"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                yield f"augment.{name} must be at least 1, got {value}"
        if self.scheduler not in SCHEDULERS:
            yield f"augment.scheduler must be one of {', '.join(SCHEDULERS)}, got {self.scheduler!r}"
        if not self.guidance_scale >= 1:
            yield (
                f"augment.guidance_scale must be at least 1, got {self.guidance_scale}; 1 turns guidance off"
            )
        if not 0 < self.strength <= 1:
            yield f"augment.strength must lie in (0, 1], got {self.strength}; 1 starts from pure noise"

    def contradictions(self) -> Iterator[str]:
        if self.method == "variation" and not self.prior:
            yield "augment.prior is empty; give a pipeline folder or set augment.method to none"
        if self.guidance_of == "class" and (self.class_condition == "none" or self.guidance_scale == 1):
            yield (
                "augment.guidance_of is class, which needs augment.class_condition text and "
                "augment.guidance_scale above 1; set both, or set augment.guidance_of to all"
            )
        if self.steps * self.strength < 1:
            yield (
                f"augment.strength is {self.strength}, which leaves no step of augment.steps {self.steps}; "
                "raise one of them"
            )
