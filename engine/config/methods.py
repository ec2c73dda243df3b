"""The published methods of synthesis, as settings of one stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Name = Literal["dda", "dda-paper", "cmi", "fast", "nayer", "cpnet", "deepinversion", "dafl", "zskt"]
Source = Literal["generator", "class_generator", "noisy_layer", "block_inverse", "pixels"]
Start = Literal["reinit", "renew", "reuse", "meta", "fomaml"]
Adversary = Literal["selfsup", "kl", "none"]
Labels = Literal["drawn", "teacher"]
Scale = Literal["sum", "relative"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """The settings that a method decides; `SynthesizeConfig` says what each means."""

    source: Source = "generator"
    start: Start = "reinit"
    steps: int = 100
    coarse_steps: int = 0
    shift: float = 0.0
    warmup_steps: int = 0
    lr: float = 1e-3
    labels: Labels = "drawn"
    adversary: Adversary = "selfsup"
    statistics_scale: Scale = "sum"
    w_cls: float = 1.0
    w_bn: float = 1.0
    w_adv: float = 10.0
    w_diversity: float = 0.0
    w_contrast: float = 0.0
    w_activation: float = 0.0
    w_balance: float = 0.0
    w_image: float = 0.0

    @property
    def teacher_passes(self) -> int:
        """Forward and backward passes of the teacher in a step."""
        of_features = bool(self.w_activation) + 2 * bool(self.w_contrast)
        return 1 + min(of_features, 2) + (self.source == "block_inverse")


DDA = Method(
    source="class_generator",
    start="renew",
    steps=25,
    warmup_steps=60,
    lr=2e-3,
    adversary="kl",
    w_bn=0.3,
    w_adv=1.0,
)
"""This engine's default. The generator sees the label and is kept from batch to batch, except for its first
layer, which each batch draws again: the kept layers know which shapes this teacher recognizes, the new
one makes every batch differ. CE + L_BN as in DDA (arXiv 2410.17606) and, in the rounds,
-KL(student || teacher) as in CMI."""

DDA_PAPER = Method(steps=200)
"""DDA (arXiv 2410.17606), with the losses of its code: a new generator for each batch, CE + L_BN + 10 ·
L_self, with L_self minus the cross-entropy of a rotation head on the student's features (CSD, arXiv
2307.04542)."""

CMI = Method(steps=200, adversary="kl", w_adv=1.0, w_contrast=0.8)
"""CMI (Fang et al., IJCAI 2021, arXiv 2105.08584): DDA's first losses, plus a contrastive term that keeps
each image apart from those before (`MemoryBank`), and -KL(student || teacher)."""

FAST = Method(start="fomaml", steps=10, warmup_steps=40, adversary="kl", w_adv=1.0)
"""Fast-DFKD (Fang et al., AAAI 2022, arXiv 2112.06253): a generator θ from which few steps per batch are
enough, learned by first-order MAML, θ ← Adam(θ, ∇L(θ_k)), with θ_k the weights after a batch's k steps. With
start `meta` it is learned by Reptile, θ ← θ + rate · (θ_k - θ)."""

NAYER = Method(
    source="noisy_layer", start="renew", steps=40, warmup_steps=40, lr=4e-3, adversary="kl", w_adv=1.33
)
"""NAYER (Tran et al., CVPR 2024, arXiv 2310.00258): the generator maps the embedding of the label's text,
through a layer that each batch draws again (`NoisyGenerator`); CE + L_BN - KL(student || teacher)."""

CPNET = Method(
    source="block_inverse", start="renew", steps=40, warmup_steps=40, lr=4e-3, adversary="kl", w_adv=1.33
)
"""After CPNet (ICCV 2025): the generator inverts the teacher block by block (`BlockInverse`). Its adversary
compares feature maps; here it is the KL divergence."""

DEEP_INVERSION = Method(
    source="pixels",
    steps=200,
    shift=0.125,
    lr=0.05,
    adversary="kl",
    w_bn=5.0,
    w_adv=1.0,
    w_image=0.5,
    statistics_scale="relative",
)
"""DeepInversion (Yin et al., CVPR 2020, arXiv 1912.07878): pixels x minimize CE + L_BN + TV + L2 under random
shifts and flips, and, as Adaptive DeepInversion, a term that makes the student disagree. Ours sums
resolutions (`Pixels`) and weighs the layers' statistics relative to their size."""

DAFL = Method(
    start="reuse",
    steps=40,
    warmup_steps=40,
    labels="teacher",
    adversary="none",
    w_bn=0.0,
    w_activation=0.1,
    w_balance=5.0,
)
"""DAFL (Chen et al., ICCV 2019, arXiv 1904.01186): one generator for all batches minimizes CE with the class
that the teacher sees, -α · mean |f| of its features, and -β · H of the batch's mean prediction."""

ZSKT = Method(start="reuse", steps=10, labels="teacher", adversary="kl", w_adv=1.0, w_cls=0.0, w_bn=0.0)
"""ZSKT (Micaelli & Storkey, NeurIPS 2019, arXiv 1905.09768): one generator for all batches maximizes the
student's divergence from the teacher, and nothing else. (The paper measures KL(teacher || student).) Before
the first round its images are noise."""

METHODS: Mapping[Name, Method] = {
    "dda": DDA,
    "dda-paper": DDA_PAPER,
    "cmi": CMI,
    "fast": FAST,
    "nayer": NAYER,
    "cpnet": CPNET,
    "deepinversion": DEEP_INVERSION,
    "dafl": DAFL,
    "zskt": ZSKT,
}
