"""A generator behind a linear layer that every batch draws again: the noise is in weights, not in z."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.generator import Generator


class NoisyGenerator(nn.Module):
    """Labels int64 [B] -> images, as in NAYER (Tran et al., CVPR 2024, arXiv 2310.00258, section 3.2).

    The fixed embedding of the label goes through BatchNorm and a linear layer, then into the generator. The
    linear layer is drawn again for each batch: the embedding keeps the class, the layer gives variety. Image
    i of a batch goes through layer i // C, so that no two images of a class go through the same one. z
    changes nothing.
    """

    embeddings: Tensor

    def __init__(self, generator: Generator, embeddings: Tensor, *, latent_dim: int, batch_size: int) -> None:
        """`embeddings`, [C, D], are those of the class names by CLIP's text tower, or any codes."""
        super().__init__()
        classes, width = embeddings.shape
        self.register_buffer("embeddings", F.normalize(embeddings.float(), dim=1), persistent=False)
        self.norm = nn.BatchNorm1d(width)
        self.entrance = nn.ModuleList(nn.Linear(width, latent_dim) for _ in range(-(-batch_size // classes)))
        self.generator = generator

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        codes = self.norm(self.embeddings[labels])
        pieces = codes.split(len(self.embeddings))
        layers = self.entrance[: len(pieces)]
        noise = torch.cat([layer(piece) for layer, piece in zip(layers, pieces, strict=True)])
        return self.generator(F.leaky_relu(noise, 0.2), labels)
