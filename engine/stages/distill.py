"""Distill: train the student, and a feature alignment head, against the teacher."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.errors import NonFiniteError, UserError, more_precision
from engine.feed.feed import FeedBatch
from engine.models.align import AlignHead, build_align_head
from engine.models.classifier import Classifier
from engine.models.features import forward_with_features
from engine.models.frozen import Frozen, frozen
from engine.models.loading import require_feature
from engine.seeding import derive_seed, seeded
from engine.stages.distill_config import DistillConfig
from engine.stages.kd_loss import DistillationLoss, distillation_loss
from engine.stages.sync_batch_norm import BatchNormOverRanks


class Trained(nn.Module):
    """The student, and the alignment head behind the feature map at `taps`, its path, where there is one."""

    def __init__(self, student: Classifier, align: AlignHead | None, taps: Sequence[str]) -> None:
        super().__init__()
        self.student, self.align, self.taps = student, align, taps

    def forward(self, images: Tensor, size: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
        """images [B, 3, H, W] in [0, 1] -> logits [B, C], aligned feature map [B, C_t, *size] or None."""
        logits, features = forward_with_features(self.student, images, self.taps)
        return logits, None if self.align is None or size is None else self.align(features[0], size)


def averaged(trained: Trained) -> DistributedDataParallel:
    """`trained`, whose gradients are, after each backward pass, their means over the ranks.

    Its buffers are left alone: BatchNorm's come out alike on all ranks.
    """
    device = next(trained.parameters()).device
    return DistributedDataParallel(
        trained,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        static_graph=True,  # a student may have parameters that it does not use
    )


def _check_pair(teacher: Classifier, student: Classifier) -> None:
    classes = teacher.num_classes
    if student.num_classes != classes:
        raise UserError(f"student.num_classes is {student.num_classes}; set it to the teacher's {classes}")


class Distiller:
    """The state of a student's training: student, alignment head, SGD over both, and the step.

    The models are moved to the accelerator's device, in their memory formats. `image_size` is the side of the
    bank's images. `ask_teacher` gives the teacher's logits and the feature map at its `feature_path`, by
    default its fused copy. Raises UserError for a teacher and student that do not fit together. The models
    are not passed through `accelerator.prepare`: it would make their later float32 evaluation run under
    autocast.

    On several ranks each has its equal part of every batch, and all take the step of the whole: gradients and
    logged losses are those of the global batch, and so are the statistics of BatchNorm. The state is the same
    on all ranks, and that of one process.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        config: DistillConfig,
        total_steps: int,
        seed: int,
        accelerator: Accelerator,
        *,
        image_size: int = 32,
        ask_teacher: Frozen | None = None,
    ) -> None:
        _check_pair(teacher, student)
        if 0 < config.warmup_steps >= total_steps:
            raise UserError(
                f"distill.warmup_steps is {config.warmup_steps}; set it below the run's {total_steps} steps, "
                "or to 0"
            )
        self.config, self.total_steps, self.seed, self.accelerator = config, total_steps, seed, accelerator
        self.step = 0
        device = accelerator.device
        self.teacher, self.student = teacher.place(device).eval(), student.place(device).eval()
        self.align: AlignHead | None = None
        taps: tuple[list[str], list[str]] = ([], [])  # of teacher and student
        if config.w_feature > 0:
            taps = [require_feature(teacher, "teacher")], [require_feature(student, "student")]
            align = build_align_head(student, teacher, image_size, seed)
            self.align = align.to(device).to(memory_format=torch.channels_last)
        trained = Trained(student.requires_grad_(True), self.align, taps[1])
        self._several = accelerator.num_processes > 1
        self._trained = averaged(trained) if self._several else trained
        sgd = torch.optim.SGD(
            trained.parameters(),
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.optimizer = accelerator.prepare_optimizer(sgd)
        self._ask_teacher = ask_teacher or frozen(teacher, taps[0], accelerator)

    def train(
        self,
        batches: Iterable[FeedBatch],
        num_steps: int,
        *,
        after_step: Callable[[Tensor, Tensor], None] | None = None,
        on_log: Callable[[int, dict[str, float]], None] | None = None,
        log_every: int = 50,
    ) -> None:
        """Take a step by each of the `num_steps` batches, which are those of the steps from `step` on.

        The student is in train mode, then in eval mode. `after_step(images, labels)` gets what the step
        trained on: float [B, 3, H, W] in [0, 1], and int64 [B]. `on_log(step, means)` is called every
        `log_every` steps and at the end with the means since the last call (loss, kl, ce, feature,
        label_agreement) and the last lr; only there does the host wait for the device, so only there is
        NonFiniteError raised, on all ranks.
        """
        if self.step + num_steps > self.total_steps:
            raise ValueError(f"step {self.step} + {num_steps} is past the schedule's {self.total_steps}")
        end, since = self.step + num_steps, self.step
        window = torch.zeros(5, device=self.accelerator.device)
        self.set_training(True)
        for batch in batches:
            loss = self.train_step(batch)
            window += torch.stack([loss.total.detach(), *loss[1:], batch.agrees.float().mean()])
            if after_step is not None:
                after_step(batch.images, batch.labels)
            if self.step % log_every == 0 or self.step == end:
                self._log(window, self.step - since, on_log)
                window.zero_()
                since = self.step
        self.set_training(False)
        if self.step != end:
            raise ValueError(f"{end - self.step} batches too few")

    def train_step(self, batch: FeedBatch) -> DistillationLoss:
        """One update by `batch`, which is on the device; its loss. `set_training(True)` goes before.

        On several ranks both are this one's part; the mean of their losses is that of the global batch.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step, self.total_steps)
        loss = self._loss(batch)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss.total)
        self.optimizer.step()
        self.step += 1
        return loss

    def _loss(self, batch: FeedBatch) -> DistillationLoss:
        config, images = self.config, batch.images.float()
        rank = self.accelerator.process_index
        dropout = seeded(derive_seed(self.seed, "distill-forward", self.step, rank), images.device)
        with dropout, self.accelerator.autocast():
            with torch.no_grad():
                teacher_logits, features = self._ask_teacher(images)
            size = tuple(features[0].shape[2:]) if self.align is not None else None
            with BatchNormOverRanks() if self._several else nullcontext():
                student_logits, aligned = self._trained(images, size)
        return distillation_loss(
            student_logits,
            teacher_logits,
            batch.labels,
            temperature=config.temperature,
            w_kl=config.w_kl,
            w_ce=config.w_ce,
            w_feature=config.w_feature,
            agrees=batch.agrees if config.ce_on_agreement else None,
            relative_agreement=batch.relative_agreement,
            features=None if aligned is None else (aligned, features[0]),
        )

    def _log(
        self, window: Tensor, num_steps: int, on_log: Callable[[int, dict[str, float]], None] | None
    ) -> None:
        means = self.accelerator.reduce(window / num_steps, "mean").tolist()
        if not math.isfinite(means[0]):
            advice = more_precision(
                self.accelerator.mixed_precision, "compute.precision", otherwise="lower distill.lr"
            )
            raise NonFiniteError(f"distill: NaN or Inf in the loss by step {self.step}; {advice}")
        if on_log is not None:
            names = ("loss", "kl", "ce", "feature", "label_agreement")
            on_log(
                self.step, dict(zip(names, means, strict=True)) | {"lr": self.optimizer.param_groups[0]["lr"]}
            )

    def set_training(self, training: bool) -> None:
        """The student and its alignment head in train or in eval mode."""
        self.student.train(training)
        if self.align is not None:
            self.align.train(training)

    def state_dict(self) -> dict[str, Any]:
        """All that decides the remaining steps but their batches; tensors and plain values only."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "seed": self.seed,
            "student": self.student.state_dict(),
            "align": None if self.align is None else self.align.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises UserError for the state of another run."""
        for name in ("total_steps", "seed"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the checkpoint's distill {name} is {state[name]}, this run's is {getattr(self, name)}; "
                    "resume with the settings it was begun with"
                )
        self.step = state["step"]
        self.student.load_state_dict(state["student"])
        if self.align is not None:
            self.align.load_state_dict(state["align"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
