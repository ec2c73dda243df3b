"""What a batch of synthesized images must minimize: the terms of all methods, each with a weight."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from engine.config.synthesize import SynthesizeConfig
from engine.errors import UserError
from engine.models.block_inverse import BlockInverse
from engine.models.classifier import Classifier
from engine.models.inverting import choose_statistics
from engine.runtime.torch import FusedClassifier
from engine.seeding import generator
from engine.stages.synthesis.contrast import MemoryBank, repulsion
from engine.stages.synthesis.statistics import image_prior, measuring

Adversary = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps augmented images, labels and teacher logits to a scalar that is low if the student finds them hard."""


class Objective:
    """The weighted sum of the terms whose weight is not 0.

    For images x with labels y, random views v of them, and the teacher's logits t and last feature map f for
    v, the terms are:

    - w_cls · CE(t, y); with labels `teacher`, y is the top-1 of t
    - w_bn · statistics of v, w_adv · adversary of v
    - w_diversity · repulsion of x, w_image · (TV + L2) of x, w_contrast · memory bank of x and v
    - from DAFL (Chen et al., ICCV 2019, arXiv 1904.01186): -w_activation · mean |f|, and -w_balance ·
      H(mean softmax(t)), with H the entropy

    A `BlockInverse` adds its own loss. In coarse steps, whose views are smaller than the images, the
    adversary takes no part.
    """

    def __init__(
        self,
        teacher: Classifier,
        config: SynthesizeConfig,
        network: nn.Module,
        *,
        image_size: tuple[int, int],
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        """Prepare the teacher, which is in eval mode, for the terms in use.

        Raises UserError if a term needs a feature map and the teacher has none.
        """
        self.teacher, self.method = teacher, config.chosen
        self.network, self.accelerator = network, accelerator
        self.memory: MemoryBank | None = None
        self.agreement = torch.zeros((), device=accelerator.device)
        """Share of the last views in which the teacher saw the label."""
        self._measured = None
        if self.method.w_bn:
            choice = choose_statistics(teacher, config.statistics, image_size)
            is_relative = self.method.statistics_scale == "relative"
            self._measured = measuring(teacher, choice, relative=is_relative)
            if choice.kind == "image":
                self.method = replace(self.method, w_image=0.0)  # w_bn weighs the same
        self._paths: list[str] = []
        if self.method.w_contrast or self.method.w_activation:
            self._paths.append(_feature_of(teacher))
        if self.method.w_contrast:
            self.memory = self._new_memory(image_size, seed)
        if isinstance(network, BlockInverse):
            self._first_map = len(self._paths)
            self._paths += network.paths
        self._featuring = FusedClassifier(teacher, self._paths, accelerator) if self._paths else None

    def _new_memory(self, image_size: tuple[int, int], seed: int) -> MemoryBank:
        device = self.accelerator.device
        with torch.no_grad():
            _, (feature,) = self.teacher.with_features(
                torch.zeros(1, 3, *image_size, device=device), self._paths
            )
        if feature.ndim != 4:
            raise UserError(
                f"teacher.feature '{self._paths[0]}' gives {list(feature.shape)}, not [B, C, H, W]; name a "
                "layer before the pooling, or set synthesize.w_contrast to 0"
            )
        return MemoryBank(feature.shape[1], generator(seed, "memory-bank")).to(device)

    def __call__(self, images: Tensor, views: Tensor, labels: Tensor, adversary: Adversary | None) -> Tensor:
        """Return the scalar loss of images [B, channels, H, W] in [0, 1] and of one random view of each."""
        method, rgb = self.method, views.expand(-1, 3, -1, -1)
        with self.accelerator.autocast():
            logits, statistics = (self.teacher(rgb), None) if self._measured is None else self._measured(rgb)
        logits = logits.float()
        if method.labels == "teacher":
            labels = logits.argmax(1)
        else:
            self.agreement.copy_((logits.argmax(1) == labels).float().mean())
        terms = [0.0 * images.sum()]  # ZSKT has no other term before the first round
        if method.w_cls:
            terms.append(method.w_cls * F.cross_entropy(logits, labels))
        if statistics is not None:
            terms.append(method.w_bn * statistics)
        is_coarse = views.shape[2:] != images.shape[2:]
        if method.w_adv and adversary is not None and not is_coarse:
            terms.append(method.w_adv * adversary(rgb, labels, logits))
        if method.w_balance:
            shares = logits.softmax(1).mean(0)
            terms.append(method.w_balance * (shares * shares.clamp_min(1e-8).log()).sum())
        if method.w_diversity:
            terms.append(method.w_diversity * repulsion(self._adapted(images), labels))
        if method.w_image:
            terms.append(method.w_image * image_prior(self._adapted(images)))
        if self._featuring is not None:
            terms.append(self._of_features(images, rgb))
        return torch.stack(terms).sum()

    def _of_features(self, images: Tensor, views: Tensor) -> Tensor:
        """Return the sum of the terms that look at the teacher's feature maps."""
        method = self.method
        terms = []
        if method.w_activation or self.memory is not None:
            feature = self._features(views)[0]
            pooled = feature.float().mean((2, 3))
            if method.w_activation:
                terms.append(-method.w_activation * feature.float().abs().mean())
            if self.memory is not None:
                of_images = self._features(images)[0].float().mean((2, 3))
                terms.append(method.w_contrast * self.memory(of_images, pooled))
        if isinstance(self.network, BlockInverse):
            terms.append(self.network.loss(self._features(images)[self._first_map :]))
        return torch.stack(terms).sum()

    def _adapted(self, images: Tensor) -> Tensor:
        return self.teacher.adapted(images.expand(-1, 3, -1, -1))

    def _features(self, images: Tensor) -> list[Tensor]:
        assert self._featuring is not None
        outputs = self._featuring(images=images.expand(-1, 3, -1, -1))
        return [outputs[path] for path in self._paths]

    def remember(self, images: Tensor) -> None:
        """Add a finished batch to the memory bank, if there is one."""
        if self.memory is not None:
            self.memory.remember(self._features(images)[0].float().mean((2, 3)))


def _feature_of(teacher: Classifier) -> str:
    if teacher.feature_path is None:
        raise UserError(
            f"teacher.feature is not set, and {teacher.name} has no feature map before a pooling; set it, or "
            "synthesize.w_contrast and synthesize.w_activation to 0"
        )
    return teacher.feature_path
