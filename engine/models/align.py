"""The alignment heads, which map a student's feature map to the shape of the teacher's during training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.models.loading import aligned_paths
from engine.seeding import derive_seed, seeded

MAX_HIDDEN = 1024
"""Maximum hidden width; without it, 2048 channels would mean 151 million weights in the 3x3 convolution."""


class AlignHead(nn.Module):
    """Feature alignment of CSD and DDA (arXiv 2307.04542, 2410.17606; layers as in their released code).

    Average pooling if the spatial sizes differ, then conv1x1 C_s -> 2 C_t (at most 1024), BN, ReLU, conv3x3,
    BN, ReLU, conv1x1 -> C_t. No convolution has a bias.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        hidden = min(2 * teacher_channels, MAX_HIDDEN)
        self.conv1 = nn.Conv2d(student_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, teacher_channels, 1, bias=False)

    def forward(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        """Map a student feature [B, C_s, h, w] to [B, C_t, H, W]; `size` is the teacher's (H, W)."""
        if feature.shape[2:] != size:
            feature = F.adaptive_avg_pool2d(feature, size)
        feature = F.relu(self.bn1(self.conv1(feature)))
        feature = F.relu(self.bn2(self.conv2(feature)))
        return self.conv3(feature)


class PooledHead(nn.Module):
    """A linear map from the student's feature map, averaged over its positions, to the teacher's."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(student_channels, teacher_channels)

    def forward(self, feature: Tensor, _: tuple[int, int]) -> Tensor:
        """Map a student feature [B, C_s, h, w] to [B, C_t]."""
        return self.linear(feature.float().mean((2, 3)))


def build_align_heads(
    student: Classifier,
    teacher: Classifier,
    image_size: tuple[int, int],
    seed: int,
    *,
    kind: type[AlignHead] | type[PooledHead] = AlignHead,
) -> nn.ModuleList:
    """Build a head for each pair of `aligned_paths` of two classifiers in eval mode at `image_size`.

    They are on the CPU, and their weights are a function of the seed. Raises UserError as `aligned_paths`,
    and one that names student.feature or teacher.feature if its output is not a [B, C, H, W] map.
    """
    widths = zip(
        _channels(student, "student", image_size), _channels(teacher, "teacher", image_size), strict=True
    )
    with seeded(derive_seed(seed, "align"), torch.device("cpu")):
        return nn.ModuleList(kind(*pair) for pair in widths)


def _channels(classifier: Classifier, section: str, image_size: tuple[int, int]) -> list[int]:
    paths = aligned_paths(classifier, section)
    probe = torch.zeros(1, 3, *image_size, device=classifier.mean.device)
    with torch.no_grad():
        _, features = classifier.with_features(probe, paths)
    if features[0].ndim != 4:
        raise UserError(
            f"{section}.feature '{paths[0]}' returns {list(features[0].shape)}, not [B, C, H, W]; "
            "name a layer before the pooling, or set distill.w_feature to 0"
        )
    return [feature.shape[1] for feature in features]
