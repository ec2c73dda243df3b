"""The terms of the inversion loss: what makes a generated batch look like the teacher's training data."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def batch_norm_loss(inputs: list[tuple[nn.BatchNorm2d, Tensor]]) -> Tensor:
    """sum over layers of ||var_batch - var_running||_2 + ||mean_batch - mean_running||_2.

    DeepInversion (arXiv 1912.08795), eq. 4. inputs: (layer, its input [B, C, H, W]). Population variance over
    B, H and W, in float32. Scalar.
    """
    total = torch.zeros((), device=inputs[0][1].device)
    for layer, x in inputs:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        total = total + torch.linalg.vector_norm(var - layer.running_var)
        total = total + torch.linalg.vector_norm(mean - layer.running_mean)
    return total


def kl_adversarial(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """-KL(student || teacher), mean over the batch, in float32: low where the two disagree."""
    log_student = F.log_softmax(student_logits.float(), 1)
    log_teacher = F.log_softmax(teacher_logits.float(), 1)
    return -(log_student.exp() * (log_student - log_teacher)).sum(1).mean()
