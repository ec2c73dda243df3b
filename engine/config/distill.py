"""Settings of the distill stage."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.config.checked import Checked
from engine.config.views import StoredViews, Views

Loss = Literal["kl", "dkd", "dist"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Checked):
    """The student's training: losses and optimizer of DDA (arXiv 2410.17606) and its released code."""

    batch_size: int = 64
    """Images in a training step, over all processes."""
    loss: Loss = "kl"
    """Soft term, which compares the logits: kl is KL(teacher || student); dkd weighs the two parts of KL, the
    teacher's top-1 class against the rest and the classes of the rest (arXiv 2203.08679); dist correlates the
    probabilities of each image over the classes and of each class over the images (arXiv 2205.10536). With
    several ranks, dist correlates over the images of each rank."""
    temperature: float = 20.0
    """Temperature of both softmaxes in the soft term, which is multiplied by its square. The gradient of dist
    grows with that square; its paper takes 1 and 4."""
    standardize: bool = False
    """Replace each image's logits by their z-scores before the temperature, for kl and dkd (arXiv
    2403.01427)."""
    dkd_alpha: float = 1.0
    """Weight of the teacher's top-1 class against the rest, in dkd."""
    dkd_beta: float = 8.0
    """Weight of the classes of the rest, in dkd."""
    dist_beta: float = 1.0
    """Weight of the correlations over the classes, in dist."""
    dist_gamma: float = 1.0
    """Weight of the correlations over the images, in dist."""
    w_kl: float = 1.0
    """Weight of the soft term."""
    w_ce: float = 1.0
    """Weight of the cross-entropy with the image's label."""
    w_feature: float = 30.0
    """Weight of the mean squared error between the aligned feature and the teacher's; 0 trains without
    alignment."""
    feature: Literal["map", "pooled"] = "map"
    """Feature that is aligned: the whole map, by a small network, or its mean over the positions, by a linear
    layer."""
    taps: dict[str, str] | None = None
    """More maps to align, as a mapping from submodules of the teacher to submodules of the student;
    distill.w_feature weighs the mean error over all maps. Stored views have none, so distill.views must be
    0."""
    lr: float = 0.1
    """Peak learning rate of SGD, which decays to 0 with a cosine over all steps of the run."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    optimizer: Literal["sgd", "muon"] = "sgd"
    """muon gives the hidden weights orthogonalized updates, which reach the same accuracy in about a third of
    the steps; the first and last layer, norms and biases stay with SGD."""
    muon_lr: float = 0.05
    """Peak learning rate of the weights that optimizer muon updates."""
    weight_decay: float = 1e-4
    """Weight decay of SGD."""
    warmup_steps: int = 0
    """Steps of linear learning-rate warm-up."""
    ce_on_agreement: bool = True
    """Apply the cross-entropy only to images whose label is the teacher's top-1 class; the soft term applies
    to all."""
    class_balance: bool = True
    """Draw a class first, then one of its images, so that rare classes count as much as frequent ones."""
    flip: bool = True
    """Mirror half of the images; set to false if left and right matter, as in digits and text."""
    teacher_flip: bool = False
    """Train on the mean of the teacher's outputs over each view and its mirror image, at twice the
    teacher's cost. Needs distill.flip, and distill.feature pooled."""
    mixup: float = 0.0
    """Share of the images of a step, or of the stored views of an image, that are mixed with another one
    (mixup, arXiv 1710.09412); they have no label, so distill.w_ce must be 0."""
    cutmix: float = 0.0
    """Share of the images of a step that get a rectangle of another one (CutMix, arXiv 1905.04899); they have
    no label, so distill.w_ce must be 0. If this and distill.mixup are above 1 together, some images are mixed
    both ways. Stored views have none, so distill.views must be 0."""
    mix_until: float = 1.0
    """Share of the steps in which distill.mixup and distill.cutmix apply; the steps after them see no mixed
    image."""
    warp: float = 0.0
    """How strongly each image of a step is stretched, turned and shifted at random: at 0.4, each axis by a
    factor of 0.67 to 1.5, by up to 17 degrees, and by up to a tenth of the side. Worth trying if the bank has
    few images. Stored views have none, so distill.views must be 0."""
    views: int = 0
    """Views of each image, cropped, flipped and mixed, that the teacher sees once; its outputs are stored in
    the bank, and training takes them from there. 0 draws new views and asks the teacher at every step.
    Feature maps are not stored: set distill.w_feature to 0, or distill.feature to pooled."""
    crop_padding: int = 4
    """Pixels of zero padding for the random crop; 0 turns the crop off."""

    def faults(self) -> Iterator[str]:
        allowed = {
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "temperature": (0 < self.temperature < math.inf, "above 0"),
            "lr": (0 < self.lr < math.inf, "above 0"),
            "muon_lr": (0 < self.muon_lr < math.inf, "above 0"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "mixup": (0 <= self.mixup <= 1, "in [0, 1]"),
            "cutmix": (0 <= self.cutmix <= 1, "in [0, 1]"),
            "mix_until": (0 < self.mix_until <= 1, "above 0 and at most 1"),
            "warp": (0 <= self.warp <= 1, "in [0, 1]"),
        }
        weights = ("w_kl", "w_ce", "w_feature", "dkd_alpha", "dkd_beta", "dist_beta", "dist_gamma")
        for name in (*weights, "weight_decay", "warmup_steps", "crop_padding", "views"):
            allowed[name] = 0 <= getattr(self, name) < math.inf, "0 or above"
        for name, (holds, values) in allowed.items():
            if not holds:
                yield f"distill.{name} is {getattr(self, name)}; set it to a value that is {values}"
        for name in self.taps or ():
            if not isinstance(name, str):
                yield f"distill.taps: {name!r} is not text; write the submodule's path in quotes"

    def contradictions(self) -> Iterator[str]:
        if self.nesterov and self.momentum == 0:
            yield "distill.nesterov is true, which needs distill.momentum above 0; set one of them"
        if self.teacher_flip and not self.flip:
            yield (
                "distill.teacher_flip asks the teacher about mirror images, but distill.flip is false; set "
                "distill.teacher_flip to false, or distill.flip to true"
            )
        if self.teacher_flip and self.w_feature and (self.taps or self.feature == "map"):
            yield (
                "distill.teacher_flip averages over mirror images, whose feature maps do not line up; set "
                "distill.feature to pooled and distill.taps to null, or distill.w_feature to 0"
            )
        for name in ("mixup", "cutmix"):
            if getattr(self, name) and self.w_ce:
                yield f"distill.{name} mixes images, which then have no label; set distill.w_ce to 0"
        for name in ("cutmix", "warp"):
            if getattr(self, name) and self.views:
                yield (
                    f"distill.{name} makes new views at every step, but distill.views stores them; set one "
                    "of them to 0"
                )
        if self.mix_until < 1 and self.views and self.mixup == 1:
            yield (
                f"distill.mix_until is {self.mix_until}, but all stored views are mixed, since distill.mixup "
                "is 1; set one of them to another value"
            )
        if self.views and self.w_feature and self.feature == "map":
            yield (
                "distill.views stores no feature map, which distill.w_feature needs; set distill.w_feature "
                "to 0, or distill.feature to pooled"
            )
        if self.taps and self.views:
            yield (
                "distill.taps aligns feature maps, but distill.views stores none; set distill.views to 0, or "
                "distill.taps to null"
            )
        if self.taps and not self.w_feature:
            yield (
                "distill.taps aligns feature maps, but distill.w_feature is 0; set distill.w_feature above "
                "0, or distill.taps to null"
            )
        if self.w_kl == self.w_ce == self.w_feature == 0:
            yield "distill.w_kl, distill.w_ce and distill.w_feature are all 0; set at least one above 0"

        if self.standardize and self.loss == "dist":
            yield (
                "distill.standardize is true, but distill.loss is dist, whose correlations have no scale; "
                "set distill.standardize to false"
            )
        for loss, first, second in (("dkd", "dkd_alpha", "dkd_beta"), ("dist", "dist_beta", "dist_gamma")):
            if self.loss == loss and getattr(self, first) == getattr(self, second) == 0:
                yield (
                    f"distill.{first} and distill.{second} are both 0, but distill.loss is {loss}; "
                    "set one above 0, or distill.loss to kl"
                )

    @property
    def teacher_taps(self) -> list[str]:
        """The teacher's submodules in `taps`, in an order that the order of the recipe does not change."""
        return sorted(self.taps or ())

    @property
    def student_taps(self) -> list[str]:
        """The student's submodule for each of `teacher_taps`."""
        return [student for _, student in sorted((self.taps or {}).items())]

    def views_of(self, seed: int) -> Views:
        """Return how the student and the teacher see an image: in stored views, or in new ones each time."""
        flip, padding = self.flip, self.crop_padding
        if not self.views:
            return Views(flip=flip, crop_padding=padding)
        return StoredViews(
            flip=flip,
            crop_padding=padding,
            count=self.views,
            mixup=self.mixup,
            seed=seed,
            teacher_flip=self.teacher_flip,
        )

    def mixed_steps(self, total_steps: int) -> int:
        """Return the number of steps, from the first on, that may see mixed images."""
        return round(self.mix_until * total_steps)

    def rate_at(self, step: int, total_steps: int) -> float:
        """Return the share of the peak learning rate at step 0..total_steps - 1.

        A linear warm-up, then half a cosine to 0.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (total_steps - self.warmup_steps)
        return (1 + math.cos(math.pi * done)) / 2
