"""Make images hard for the student: the rotation head of CSD (arXiv 2307.04542), or a KL divergence.

The head learns to predict class and rotation from the student's features. The generator is optimized towards
images on which the head fails: images that the student does not know well yet.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.models.generator import init_weights
from engine.runtime.torch import FusedClassifier
from engine.seeding import generator
from kernels.kd_loss import kd_loss


def rotations(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four quarter turns of images, and their joint labels.

    Args:
        images: [B, C, H, W]; if they are not square, quarter turns are resized (bilinearly) to H and W.
        labels: int64 [B].

    Returns:
        Images [4B, C, H, W], turn by turn, and int64 [4B] with 4 * label + turn.
    """
    turned = torch.cat([_turned(images, turn) for turn in range(4)])
    joint = torch.cat([4 * labels + turn for turn in range(4)])
    return turned.contiguous(memory_format=torch.channels_last), joint


def _turned(images: Tensor, turn: int) -> Tensor:
    turned = torch.rot90(images, turn, (2, 3))
    size = images.shape[2:]
    return turned if turned.shape[2:] == size else F.interpolate(turned, size, mode="bilinear")


class RotationHead(nn.Module):
    """Two linear layers: pooled features [B, D] -> L2-normalised logits [B, 4 * num_classes]."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 4 * num_classes)
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.layers(features.float()), dim=1)


class RotationAdversary:
    """A rotation head on the student's features, with its optimizer.

    `learn` trains the head along with the student; `adversarial_term` returns its loss for the generator.
    """

    def __init__(
        self, student: Classifier, image_size: tuple[int, int], seed: int, accelerator: Accelerator
    ) -> None:
        self.student, self.seed, self.accelerator = student, seed, accelerator
        with torch.no_grad():
            feature = self._feature_map(torch.zeros(1, 3, *image_size, device=accelerator.device))
        if feature.ndim != 4:
            raise UserError(
                f"student.feature '{student.feature_path}' gives {list(feature.shape)}, not [B, C, H, W]; "
                "name a layer before the pooling, or set synthesize.adversary to kl"
            )
        self.head = RotationHead(feature.shape[1], student.num_classes).to(accelerator.device)
        self.restart(0)

    def restart(self, round_index: int) -> None:
        """Initialize the head and its optimizer again. The loop does so once after every synthesis round."""
        init_weights(self.head, generator(self.seed, "rotation-head", round_index))
        self.optimizer = torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def learn(self, images: Tensor, labels: Tensor) -> None:
        """Train the head for a step on the four turns of a quarter batch; the student gets no gradients."""
        quarter = max(1, len(images) // 4)
        turned, joint = rotations(images[:quarter], labels[:quarter])
        with torch.no_grad():
            features = _pooled(self._feature_map(turned))
        loss = F.cross_entropy(self.head(features), joint)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def adversarial_term(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss (images, labels) -> -CE(head(student features of the four turns), joint labels).

        It is low if the head fails. It uses the student's current weights, which get no gradients.
        """
        assert self.student.feature_path is not None
        path = self.student.feature_path
        student = FusedClassifier(self.student, [path], self.accelerator)

        def term(images: Tensor, labels: Tensor) -> Tensor:
            turned, joint = rotations(images, labels)
            return -F.cross_entropy(self.head(_pooled(student(images=turned)[path])), joint)

        return term

    def _feature_map(self, images: Tensor) -> Tensor:
        was_training = self.student.training
        self.student.eval()
        assert self.student.feature_path is not None
        with self.accelerator.autocast():
            _, (feature,) = self.student.with_features(images, [self.student.feature_path])
        self.student.train(was_training)
        return feature

    def state_dict(self) -> dict:
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])


def _pooled(feature: Tensor) -> Tensor:
    """Average over positions: [B, D, h, w] -> float32 [B, D]."""
    return feature.float().mean((2, 3))


def kl_adversarial(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return -KL(student || teacher), the mean over the batch in float32; it is low if the two disagree.

    Logits are [B, C]; gradients flow to both.
    """
    return -kd_loss(teacher_logits, student_logits, temperature=1.0).total
