"""Keep images apart from one another: CMI's contrastive memory bank, and a repulsion within each class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MARGIN = 0.75
"""Distance, in standard deviations of the teacher's input, from which two images of a class do not repel."""
MEMORY = 2048
"""Embeddings that the memory bank holds."""
WIDTH = 128
"""Width of the embeddings."""
TEMPERATURE = 0.2


def repulsion(images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of max(0, 1 - d / MARGIN) over pairs of images of one class, a scalar in [0, 1].

    d is the root mean square of the difference of two images [B, C, H, W], normalized as for the teacher;
    labels are int64 [B].
    """
    pixels = images.flatten(1)
    squares = pixels.square().mean(1)
    distance = (squares[:, None] + squares - 2 * pixels @ pixels.T / pixels.shape[1]).clamp_min(1e-6).sqrt()
    same = (labels[:, None] == labels).triu(1).float()
    return (same * F.relu(1 - distance / MARGIN)).sum() / same.sum().clamp_min(1)


class MemoryBank(nn.Module):
    """The contrastive term of CMI (Fang et al., IJCAI 2021, arXiv 2105.08584).

    With x⁺ another view of x, it is the mean of -log(exp(h(x)·h(x⁺) / τ) / Σ exp(h(x)·h(x') / τ)), with x'
    among x⁺, the other images of the batch and those of the last batches. h projects the teacher's pooled
    features onto a sphere. CMI trains that projection; here it is random and fixed, so that no batch depends
    on how others trained it, and CMI's second encoder is not needed.
    """

    memory: Tensor
    filled: Tensor
    projection: Tensor

    def __init__(self, features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(features, WIDTH, generator=generator))
        self.register_buffer("memory", torch.zeros(MEMORY, WIDTH))
        self.register_buffer("filled", torch.zeros(MEMORY))

    def forward(self, features: Tensor, of_views: Tensor) -> Tensor:
        """Return the term for pooled features [B, D] of images and of their views."""
        images, views = self.embed(features), self.embed(of_views)
        others = images @ images.T / TEMPERATURE
        others = others.masked_fill(
            torch.eye(len(images), dtype=torch.bool, device=images.device), -torch.inf
        )
        remembered = images @ self.memory.T / TEMPERATURE + self.filled.log()  # empty places weigh nothing
        positive = (images * views).sum(1, keepdim=True) / TEMPERATURE
        return (torch.cat([positive, others, remembered], 1).logsumexp(1) - positive[:, 0]).mean()

    def embed(self, features: Tensor) -> Tensor:
        return F.normalize(features.float() @ self.projection, dim=1)

    @torch.no_grad()
    def remember(self, features: Tensor) -> None:
        """Add pooled features [B, D] to the memory, in place of the oldest."""
        count = min(len(features), MEMORY)
        for buffer, rows in ((self.memory, self.embed(features)), (self.filled, features.new_ones(count))):
            buffer.copy_(torch.cat([rows[-count:].to(buffer), buffer[:-count]]))

    @torch.no_grad()
    def forget(self) -> None:
        """Empty the memory."""
        self.memory.zero_()
        self.filled.zero_()
