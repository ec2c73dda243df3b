"""What a batch of synthesized images must minimize: the terms of all methods, each with a weight."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from engine.config.synthesize import SynthesizeConfig
from engine.models.block_inverse import BlockInverse
from engine.models.classifier import Classifier
from engine.models.inverting import choose_statistics
from engine.models.loading import require_feature
from engine.runtime.torch import FusedClassifier
from engine.seeding import generator
from engine.stages.synthesis.contrast import MemoryBank, repulsion
from engine.stages.synthesis.statistics import image_prior, measuring

Adversary = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps augmented images, labels and teacher logits to a scalar that is low if the student finds them hard."""


class Objective:
    """The weighted sum of the terms whose weight is not 0. A term that is not in use costs nothing.

    For images x, labels y and the teacher's logits t for random views of x, the terms are w_cls · CE(t, y),
    w_bn · statistics, w_adv · adversary, w_diversity · repulsion, w_contrast · memory bank, w_image · (TV +
    L2) and, from DAFL (Chen et al., ICCV 2019, arXiv 1904.01186), -w_activation · mean |f|
    and -w_balance · H(mean softmax(t)), with f the teacher's last feature map and H the entropy. With labels
    `teacher`, y is the top-1 of t. A `BlockInverse` adds its own loss.
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
        self._measured = None
        if self.method.w_bn:
            choice = choose_statistics(teacher, config.statistics, image_size)
            is_relative = self.method.statistics_scale == "relative"
            self._measured = measuring(teacher, choice, relative=is_relative)
        self._paths: list[str] = []
        if self.method.w_contrast or self.method.w_activation:
            self._paths.append(require_feature(teacher, "teacher"))
        if self.method.w_contrast:
            self.memory = self._new_memory(image_size, seed)
        if isinstance(network, BlockInverse):
            self._paths += network.paths
        self._featuring = FusedClassifier(teacher, self._paths, accelerator) if self._paths else None

    def _new_memory(self, image_size: tuple[int, int], seed: int) -> MemoryBank:
        device = self.accelerator.device
        with torch.no_grad():
            _, (feature,) = self.teacher.with_features(
                torch.zeros(1, 3, *image_size, device=device), self._paths
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
        terms = [0.0 * images.sum()]  # a method without a term in its first batches, as ZSKT, has a gradient
        if method.w_cls:
            terms.append(method.w_cls * F.cross_entropy(logits, labels))
        if statistics is not None:
            terms.append(method.w_bn * statistics)
        if method.w_adv and adversary is not None:
            terms.append(method.w_adv * adversary(rgb, labels, logits))
        if method.w_balance:
            shares = logits.softmax(1).mean(0)
            terms.append(method.w_balance * (shares * shares.clamp_min(1e-8).log()).sum())
        if method.w_diversity:
            terms.append(method.w_diversity * repulsion(images, labels, self.teacher.std))
        if method.w_image:
            terms.append(method.w_image * image_prior(self.teacher.adapted(images.expand(-1, 3, -1, -1))))
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
            terms.append(self.network.loss(self._features(images)[-len(self.network.paths) :]))
        return torch.stack(terms).sum()

    def _features(self, images: Tensor) -> list[Tensor]:
        assert self._featuring is not None
        outputs = self._featuring(images=images.expand(-1, 3, -1, -1))
        return [outputs[path] for path in self._paths]

    def remember(self, images: Tensor) -> None:
        """Add a finished batch to the memory bank, if there is one."""
        if self.memory is not None:
            self.memory.remember(self._features(images)[0].float().mean((2, 3)))
