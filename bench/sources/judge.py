"""An independent judge of the embedded example's sources: a small CNN trained on the public half.

It has GroupNorm and GELU in place of the teacher's BatchNorm and ReLU, never saw the teacher or its private
half, and is used to judge only. Half of its training images are strongly augmented.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from engine.datasets.fashion_mnist import LabeledImages, load
from engine.pretraining.fit import Fit, fit
from engine.pretraining.views import strong_view
from engine.seeding import generator
from kernels.crop_flip import random_crop_flip

logger = logging.getLogger(__name__)

CLASSES, BATCH, EPOCHS = 10, 128, 6


class Judge(nn.Module):
    """Grey images [B, 1, H, W] in [0, 1] -> logits [B, 10]: three pairs of 3x3 convolutions."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        into = 1
        for number, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if number else []
            for channels in (into, width):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU()]
            into = width
        self.features, self.head = nn.Sequential(*layers), nn.Linear(into, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features((images - 0.3) * 2).mean((2, 3)))

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """Return the top-1 of uint8 images [B, 3, H, W], grey in RGB; int64 [B]."""
        return torch.cat([self(part[:, :1].float() / 255).argmax(1) for part in images.split(500)])


def trained_judge(folder: Path, accelerator: Accelerator) -> Judge:
    """Return the judge, trained in `folder` unless it already is; log its accuracy on the private half."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    judge = Judge().to(memory_format=torch.channels_last)
    data = load("public", None)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.05)
    steps = len(data.labels) // BATCH
    schedule = Fit(epochs=EPOCHS, steps_per_epoch=steps, max_lr=2e-3, seed=0)

    def losses(epoch: int) -> Iterator[Tensor]:
        draw = generator(0, "judge", epoch)
        order = torch.randperm(len(data.labels), generator=draw)[: steps * BATCH].split(BATCH)
        return (_loss(judge, data, rows, draw, accelerator) for rows in order)

    fit("judge", judge, optimizer, losses, schedule, folder / "judge.pt")
    judge.eval()
    private = load("private", None)
    accuracy = (judge.classes(private.images) == private.labels).double().mean()
    logger.info("the judge is right on %.2f %% of the private half", 100 * accuracy)
    return judge


def _loss(
    judge: Judge, data: LabeledImages, rows: Tensor, draw: torch.Generator, accelerator: Accelerator
) -> Tensor:
    images = data.images[rows]
    plain, strong = random_crop_flip(images, draw)[:, :1].float() / 255, strong_view(images, draw)[:, :1]
    chosen = torch.rand(len(rows), 1, 1, 1, generator=draw) < 0.5
    with accelerator.autocast():
        logits = judge(torch.where(chosen, strong, plain).contiguous(memory_format=torch.channels_last))
    return F.cross_entropy(logits.float(), data.labels[rows], label_smoothing=0.05)
