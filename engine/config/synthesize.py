"""Settings of the synthesize stage."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from engine.config import methods
from engine.config.checked import Checked
from engine.config.methods import METHODS, Method
from engine.config.views import Views

Statistics = Literal["batch_norm", "patch_similarity", "image"]


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig(Checked):
    """The inversion of the teacher. A setting that is null takes the value of the method."""

    method: methods.Name = "dda"
    """Which published method decides the settings that are null: dda (this engine's default), dda-paper
    (DDA's code, arXiv 2410.17606), cmi (contrastive memory bank, arXiv 2105.08584), fast (meta-learned
    generator, arXiv 2112.06253), nayer (noisy layer, arXiv 2310.00258), cpnet (inverts the teacher block by
    block, ICCV 2025), deepinversion (pixels, arXiv 1912.07878), dafl (arXiv 1904.01186) or zskt (arXiv
    1905.09768)."""
    batch_size: int = 128
    """Images that are optimized together and matched to the BatchNorm statistics as one batch."""
    steps: int | None = None
    """Optimizer steps per batch; the images of the step with the lowest loss are kept."""
    coarse_steps: int | None = None
    """First steps of a batch, in which the teacher sees the images at half their size, for a quarter of the
    cost; needs a teacher that takes any size."""
    source: methods.Source | None = None
    """What makes the images: a generator, one that sees the label (class_generator) or only the label's
    embedding (noisy_layer), one whose blocks also predict the teacher's feature maps (block_inverse), or the
    pixels themselves, as a sum of resolutions."""
    start: methods.Start | None = None
    """Initial weights of the generator for each batch: reinit draws new ones; reuse keeps the last batch's;
    renew does so, too, but draws the first layer again; meta and fomaml learn an initialization from which a
    few steps are enough, meta by moving it towards each batch's final weights (Reptile, arXiv 1803.02999),
    fomaml along each batch's last gradient (MAML, arXiv 1703.03400)."""
    warmup_steps: int | None = None
    """For all but reinit: additional optimizer steps, once, before the first batch, each with new labels and
    z."""
    meta_rate: float = 0.5
    """For meta and fomaml: how far the initialization moves with each batch, as a share of the batch's own
    way; for fomaml, Adam's learning rate is that share of steps · lr."""
    labels: methods.Labels | None = None
    """drawn optimizes images towards labels drawn in advance; teacher towards whatever class the teacher
    sees in them, which becomes their label."""
    adversary: methods.Adversary | None = None
    """What makes images hard in the rounds: selfsup (the rotation head's error), kl (the student's divergence
    from the teacher) or none."""
    w_cls: float | None = None
    """Weight of the teacher's cross-entropy with the label."""
    statistics: Statistics | None = None
    """What the images must match as well as their class: batch_norm (the running statistics of the teacher's
    BatchNorms, DeepInversion, arXiv 1912.07878), patch_similarity (the entropy of the similarities between
    the patches that its attention sees, PSAQ-ViT, arXiv 2203.02250) or image (total variation and L2 norm of
    the image, DeepInversion); null takes the first of these that the teacher allows."""
    statistics_scale: methods.Scale | None = None
    """For batch_norm: sum adds up the distances of all layers, as published; relative is the mean of their
    ratios to the size of the layer's statistics, which needs no other w_bn for a deeper network."""
    w_bn: float | None = None
    """Weight of the statistics, whichever synthesize.statistics names."""
    w_adv: float | None = None
    """Weight of the adversary, in the rounds only; published are 10 for selfsup and about 1 for kl."""
    w_diversity: float | None = None
    """Weight of a repulsion between images of a class that are nearly alike."""
    w_contrast: float | None = None
    """Weight of the contrastive term: each image apart from all others of the last batches (CMI)."""
    w_activation: float | None = None
    """Weight of minus the mean absolute activation of the teacher's last feature map (DAFL)."""
    w_balance: float | None = None
    """Weight of minus the entropy of the classes in a batch, as the teacher sees them (DAFL)."""
    w_image: float | None = None
    """Weight of the image's total variation and L2 norm (DeepInversion)."""
    class_weights: dict[str, float] | None = None
    """Weight of a class in the draw, by its name; a class that is not named has 1. null draws all classes
    equally often."""
    latent_dim: int = 256
    """Width of the generator's input z."""
    lr: float | None = None
    """Peak learning rate of Adam (betas 0.5 and 0.999) for the generator's weights and z, or the pixels; in
    each batch it rises for 10 steps, then falls with a cosine."""
    flip: bool | None = None
    """Mirror half of the images before the teacher sees them; null follows distill.flip."""
    shift: float | None = None
    """Largest circular shift of a batch before the teacher sees it, as a share of the image's side."""
    crop_padding: int | None = None
    """Pixels of zero padding for the crop that the teacher sees; null follows distill.crop_padding."""

    @property
    def chosen(self) -> Method:
        """The method's settings, with those that are not null here in place of its own."""
        given = {field.name: getattr(self, field.name) for field in fields(Method)}
        return replace(METHODS[self.method], **{k: value for k, value in given.items() if value is not None})

    def resolved(self) -> "SynthesizeConfig":
        """Return the settings with the method's values in place of null."""
        return replace(self, **asdict(self.chosen))

    def with_steps(self, steps: int) -> "SynthesizeConfig":
        """Return the settings with `steps`, and the same share of coarse ones."""
        coarse = self.chosen.coarse_steps * steps // self.chosen.steps
        return replace(self, steps=steps, coarse_steps=coarse)

    @property
    def first_steps(self) -> int:
        """Optimizer steps before the first batch."""
        return 0 if self.chosen.start == "reinit" else self.chosen.warmup_steps

    def views(self, *, default: Views) -> Views:
        """Return the views that the teacher sees, with `default` for settings that are null."""
        return Views(
            flip=default.flip if self.flip is None else self.flip,
            crop_padding=default.crop_padding if self.crop_padding is None else self.crop_padding,
        )

    def faults(self) -> Iterator[str]:
        for name in ("batch_size", "steps", "latent_dim"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield f"synthesize.{name} must be at least 1, got {value}"
        weights = [field.name for field in fields(self) if field.name.startswith("w_")]
        for name in ("warmup_steps", "coarse_steps", *weights):
            if (value := getattr(self, name)) is not None and not 0 <= value < float("inf"):
                yield f"synthesize.{name} must be 0 or above, got {value}"
        if self.shift is not None and not 0 <= self.shift <= 0.5:
            yield f"synthesize.shift must lie in [0, 0.5], got {self.shift}"
        if self.crop_padding is not None and self.crop_padding < 0:
            yield f"synthesize.crop_padding must be 0 or above, got {self.crop_padding}"
        if self.lr is not None and not 0 < self.lr < float("inf"):
            yield f"synthesize.lr must be above 0, got {self.lr}"
        if not 0 < self.meta_rate <= 1:
            yield f"synthesize.meta_rate must lie in (0, 1], got {self.meta_rate}"
        for name, weight in (self.class_weights or {}).items():
            if not 0 <= weight < float("inf"):
                yield f"synthesize.class_weights: '{name}' has {weight}; give 0 or more"

    def contradictions(self) -> Iterator[str]:
        if self.method not in METHODS:
            return
        chosen = self.chosen
        if chosen.source == "pixels" and chosen.start != "reinit":
            yield (
                f"synthesize.start is {chosen.start}, but pixels carry nothing to the next batch; set it "
                "to reinit, or synthesize.source to generator"
            )
        if chosen.coarse_steps >= chosen.steps:
            yield (
                f"synthesize.coarse_steps is {chosen.coarse_steps}, which leaves none of the {chosen.steps} "
                "synthesize.steps at full size; lower it"
            )
        if chosen.source == "noisy_layer" and self.batch_size == 1:
            yield ("synthesize.batch_size is 1, but noisy_layer normalizes over a batch; set it to 2 or more")
        if chosen.labels == "teacher" and self.class_weights:
            yield (
                "synthesize.class_weights draws labels, but synthesize.labels is teacher, which takes the "
                "class that the teacher sees; leave one of them out"
            )
