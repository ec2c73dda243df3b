"""The image statistics that synthesis measures in addition to the class: BatchNorm's, or a substitute."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.attention import attention_output
from engine.models.classifier import Classifier
from engine.models.inverting import StatisticsChoice
from kernels.fuse import measured, sharing_tensors

Measured = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps images [B, 3, H, W] in [0, 1] to the teacher's logits and the scalar that w_bn weighs."""

MAX_PATCHES = 100
"""Maximum number of patches that are compared with one another, evenly spaced in the sequence."""
BANDWIDTH = 0.05
POINTS = 64
W_VARIATION = 0.05
W_NORM = 0.1


def measuring(teacher: Classifier, choice: StatisticsChoice, *, relative: bool = False) -> Measured:
    """Return the teacher, in eval mode, with the chosen statistics; `relative` is for BatchNorm's.

    The teacher is never changed, and its parameters are shared. The function is not thread-safe.
    """
    if choice.kind == "batch_norm":
        return measured(teacher, relative=relative)
    if choice.kind == "patch_similarity":
        return PatchSimilarity(teacher, choice.attention)
    return lambda images: (teacher(images), image_prior(teacher.adapted(images)))


class PatchSimilarity:
    """A classifier with the loss of PSAQ-ViT (Li et al., ECCV 2022, arXiv 2203.02250) on its images.

    The loss is -H + 0.05 · TV: the mean of `similarity_entropy` over the outputs of the submodules at
    `paths`, and the total variation of the network's input.
    """

    def __init__(self, classifier: Classifier, paths: Sequence[str]) -> None:
        self._tokens: list[Tensor] = []
        self._classifier: Classifier = sharing_tensors(classifier)
        layout = classifier.feature_layout
        self._patches = None if layout is None else (layout.prefix, layout.grid[0] * layout.grid[1])
        for path in paths:
            self._classifier.get_submodule(path).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, _inputs: object, output: object) -> None:
        self._tokens.append(attention_output(module, output))

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self._tokens.clear()  # a pass that failed may have left some
        logits = self._classifier(images)
        entropies = [similarity_entropy(self._without_prefix(tokens)) for tokens in self._tokens]
        self._tokens.clear()
        variation = total_variation(self._classifier.adapted(images))
        return logits, W_VARIATION * variation - torch.stack(entropies).mean()

    def _without_prefix(self, tokens: Tensor) -> Tensor:
        """Return [B', N, D] without the class token and registers."""
        tokens = tokens.flatten(1, -2)
        prefix, count = self._patches or (0, 0)
        return tokens[:, prefix:] if tokens.shape[1] == prefix + count else tokens


def similarity_entropy(tokens: Tensor) -> Tensor:
    """Return the differential entropy of the cosine similarities between an image's patches, the mean over B.

    Of [B, N, D], at most 100 patches are compared, each pair once. The density is a sum of Gaussians of width
    0.05, one for each pair; the integral over it is a sum over 64 points. In float32, or float64 for such.
    """
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    if wide.shape[1] > MAX_PATCHES:
        spaced = torch.linspace(0, wide.shape[1] - 1, MAX_PATCHES, device=wide.device).round().long()
        wide = wide[:, spaced]
    with torch.autocast(wide.device.type, enabled=False):
        unit = F.normalize(wide, dim=2)
        rows, columns = torch.triu_indices(wide.shape[1], wide.shape[1], 1, device=wide.device)
        similarities = (unit @ unit.transpose(1, 2))[:, rows, columns]
        margin = 1 + 3 * BANDWIDTH
        points = torch.linspace(-margin, margin, POINTS, device=wide.device, dtype=wide.dtype)
        density = _GaussianDensity.apply(similarities, points, BANDWIDTH)
        return torch.trapezoid(-density * (density + 1e-12).log(), points, dim=1).mean()


class _GaussianDensity(torch.autograd.Function):
    """Density [B, P] of values [B, M] at points [P]: a mean of Gaussians, without a tensor of B · M · P."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(values, points)
        ctx.width = width
        return torch.stack([_gaussian(point - values, width).mean(1) for point in points], 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        values, points = ctx.saved_tensors
        total = torch.zeros_like(values)
        for index, point in enumerate(points):
            distance = point - values
            total += grad[:, index, None] * distance * _gaussian(distance, ctx.width)
        return total / (ctx.width**2 * values.shape[1]), None, None


def _gaussian(distance: Tensor, width: float) -> Tensor:
    return torch.exp(-0.5 * (distance / width) ** 2) / (width * (2 * torch.pi) ** 0.5)


def image_prior(x: Tensor) -> Tensor:
    """Return the image prior of DeepInversion (arXiv 1912.07878, equation 3) of [B, C, H, W], a scalar.

    It is TV + 0.1 · L2, with the ratio of their weights for ImageNet. Both are root mean squares, so that
    they do not depend on the size of the image.
    """
    return total_variation(x) + W_NORM * _root_mean_square(x)


def total_variation(x: Tensor) -> Tensor:
    """Return the differences of neighbours in [B, C, H, W]: root mean squares of four directions, summed."""
    differences = (
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:] - x[..., :-1],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    return torch.stack([_root_mean_square(difference) for difference in differences]).sum()


def _root_mean_square(x: Tensor) -> Tensor:
    """Return the root mean square of each image, the mean over the batch."""
    return (x.float().square().flatten(1).mean(1) + 1e-8).sqrt().mean()
