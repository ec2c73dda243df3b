"""The terms of the inversion loss: what makes a generated batch look like the teacher's training data."""

import torch.nn.functional as F
from torch import Tensor


def kl_adversarial(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """-KL(student || teacher), mean over the batch, in float32: low where the two disagree."""
    log_student = F.log_softmax(student_logits.float(), 1)
    log_teacher = F.log_softmax(teacher_logits.float(), 1)
    return -(log_student.exp() * (log_student - log_teacher)).sum(1).mean()
