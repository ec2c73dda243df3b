"""One synthesis step and one distillation step of DDA and CSD (arXiv 2410.17606, 2307.04542)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.published.hooks import StatisticsHook

FeatureExtractor = Callable[[Tensor], Tensor]
"""images [B, 3, H, W] -> feature map [B, D, h, w]"""


def augment(images: Tensor, pad: int = 4) -> Tensor:
    """Crop and flip each image at random, one image after the other; differentiable."""
    size = images.shape[-1]
    padded = F.pad(images, (pad, pad, pad, pad))
    cropped = []
    for image in padded:
        top, left = torch.randint(0, 2 * pad + 1, (2,)).tolist()
        view = image[:, top : top + size, left : left + size]
        cropped.append(view.flip(-1) if torch.rand(()) < 0.5 else view)
    return torch.stack(cropped)


def quarter_turns(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the quarter turns of images [B, C, S, S], turn by turn, and 4 * label + turn, int64 [4B]."""
    turned = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
    return turned, torch.cat([4 * labels + turn for turn in range(4)])


class PublishedSynthesis:
    """The generator's Adam steps on one batch, with the rotation term if there are a student map and a head.

    teacher: images [B, 3, H, W] -> logits, with `hooks` attached; student_map: images -> feature map
    [B, D, h, w]; head: pooled features [4B, D] -> joint logits [4B, 4C]; z [B, latent]; labels int64 [B].
    """

    def __init__(
        self,
        teacher: nn.Module,
        hooks: list[StatisticsHook],
        generator: nn.Module,
        z: Tensor,
        labels: Tensor,
        *,
        student_map: FeatureExtractor | None = None,
        head: nn.Module | None = None,
    ) -> None:
        self.teacher, self.hooks, self.student_map, self.head = teacher, hooks, student_map, head
        self.generator, self.z, self.labels = generator, z.clone().requires_grad_(), labels
        self.optimizer = torch.optim.Adam([*generator.parameters(), self.z], 1e-3, betas=(0.5, 0.999))
        self.best_loss = float("inf")
        self.best_images: Tensor | None = None

    def step(self) -> None:
        images = self.generator(self.z, self.labels)
        augmented = augment(images)
        logits = self.teacher(augmented)
        loss = F.cross_entropy(logits, self.labels) + sum(hook.loss for hook in self.hooks)
        if self.student_map is not None and self.head is not None:
            loss = loss + 10 * self._rotation(augmented, self.student_map, self.head)
        if loss.item() < self.best_loss:
            self.best_loss, self.best_images = loss.item(), images.data
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _rotation(self, images: Tensor, student_map: FeatureExtractor, head: nn.Module) -> Tensor:
        turned, joint = quarter_turns(images, self.labels)
        return -F.cross_entropy(head(student_map(turned).mean((2, 3))), joint)


class PublishedDistillation:
    """SGD steps of the student and its alignment head.

    teacher, student: images -> (logits, feature map);
    align: (student map, (H, W)) -> a map of the teacher's shape.
    """

    def __init__(
        self,
        teacher: Callable[[Tensor], tuple[Tensor, Tensor]],
        student: Callable[[Tensor], tuple[Tensor, Tensor]],
        align: nn.Module,
        trained: list[nn.Parameter],
    ) -> None:
        self.teacher, self.student, self.align = teacher, student, align
        self.optimizer = torch.optim.SGD(trained, 0.1, 0.9, weight_decay=1e-4)

    def step(self, images: Tensor, labels: Tensor) -> float:
        images = augment(images)
        with torch.no_grad():
            teacher_logits, teacher_map = self.teacher(images)
        logits, student_map = self.student(images)
        soft = F.kl_div(
            F.log_softmax(logits / 20, 1), F.softmax(teacher_logits / 20, 1), reduction="batchmean"
        )
        aligned = self.align(student_map, (teacher_map.shape[2], teacher_map.shape[3]))
        loss = 400 * soft + F.cross_entropy(logits, labels) + 30 * F.mse_loss(aligned, teacher_map)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
