"""Train the student and its alignment heads against the teacher, on one device or several."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.config.distill import DistillConfig
from engine.errors import NonFiniteError, UserError, more_precision
from engine.feed.feed import FeedBatch
from engine.models.align import AlignHead, PooledHead, build_align_heads
from engine.models.classifier import Classifier
from engine.models.loading import aligned_paths
from engine.runtime.base import Executable
from engine.runtime.torch import FusedClassifier
from engine.seeding import derive_seed, generator, seeded
from engine.stages.kd_loss import DistillationLoss, distillation_loss
from engine.stages.optimizer import StudentSgd
from engine.stages.sync_batch_norm import BatchNormOverRanks
from engine.stages.views import ask, varied


class StudentWithHeads(nn.Module):
    """The student and the alignment heads on its maps at `feature_paths`, as one module."""

    def __init__(self, student: Classifier, heads: nn.ModuleList, feature_paths: Sequence[str]) -> None:
        super().__init__()
        self.student, self.heads, self.feature_paths = student, heads, feature_paths

    def forward(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, list[Tensor]]:
        """Return logits [B, C] and a feature of each head, [B, C_t, *size] or [B, C_t].

        Images are [B, 3, H, W] in [0, 1].
        """
        logits, features = self.student.with_features(images, self.feature_paths)
        return logits, [
            head(feature, size) for head, feature, size in zip(self.heads, features, sizes, strict=True)
        ]


def data_parallel(module: StudentWithHeads) -> DistributedDataParallel:
    """Average the gradients of `module` over the ranks after each backward pass.

    Buffers are not synchronized: BatchNormOverRanks computes the same ones on all ranks.
    """
    device = next(module.parameters()).device
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        static_graph=True,  # a student may have parameters that it does not use
    )


def _check_pair(teacher: Classifier, student: Classifier) -> None:
    classes = teacher.num_classes
    if student.num_classes != classes:
        raise UserError(
            f"student.num_classes is {student.num_classes}, but the teacher has {classes} classes; "
            f"set it to {classes}"
        )


class Distiller:
    """The state of a student's training: student, alignment heads, SGD over all, and the step.

    The models are moved to the accelerator's device, in their memory formats. They do not go through
    `accelerator.prepare`, which would run their later float32 evaluation under autocast.

    With several ranks, each trains on an equal part of every batch. Gradients, logged losses and BatchNorm
    statistics are those of the global batch, so the state is the same on all ranks and as in one process,
    except that each rank draws new views of its own part and mixes them with each other, and that the loss
    `dist` correlates over them.
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
        image_size: tuple[int, int] = (32, 32),
        teacher_forward: Executable | None = None,
    ) -> None:
        """Build the alignment heads and the optimizer.

        Args:
            image_size: height and width of the bank's images.
            teacher_forward: returns the teacher's logits and the maps at its `aligned_paths`; a fused copy of
                the teacher by default.

        Raises:
            UserError: if teacher and student do not fit together, or the warm-up exceeds `total_steps`.
        """
        _check_pair(teacher, student)
        if 0 < config.warmup_steps >= total_steps:
            raise UserError(
                f"distill.warmup_steps is {config.warmup_steps}, but the run has {total_steps} steps; "
                f"set it below {total_steps}"
            )
        self.config, self.total_steps, self.seed, self.accelerator = config, total_steps, seed, accelerator
        self.step = 0
        device = accelerator.device
        self.teacher, self.student = teacher.place(device).eval(), student.place(device).eval()
        self.heads = nn.ModuleList()
        teacher_paths, student_paths = list[str](), list[str]()
        if config.w_feature > 0:
            teacher_paths = aligned_paths(teacher, "teacher")
            student_paths = aligned_paths(student, "student")
            kind = PooledHead if config.feature == "pooled" else AlignHead
            heads = build_align_heads(student, teacher, image_size, seed, kind=kind)
            self.heads = heads.to(device).to(memory_format=torch.channels_last)
        module = StudentWithHeads(student.requires_grad_(True), self.heads, student_paths)
        self._has_ranks = accelerator.num_processes > 1
        self._module = data_parallel(module) if self._has_ranks else module
        self._sgd = StudentSgd(module, student, config)
        self.optimizer = accelerator.prepare_optimizer(self._sgd)
        self._teacher_paths = teacher_paths
        self._teacher_forward = teacher_forward or FusedClassifier(teacher, teacher_paths, accelerator)

    def train(
        self,
        batches: Iterable[FeedBatch],
        num_steps: int,
        *,
        after_step: Callable[[Tensor, Tensor], None] | None = None,
        on_log: Callable[[int, dict[str, float]], None] | None = None,
        log_every: int = 50,
    ) -> None:
        """Take `num_steps` steps. The student is in train mode during and in eval mode after them.

        Args:
            batches: one for each step from `step` on.
            after_step: called with the step's images, float [B, 3, H, W] in [0, 1], and labels, int64 [B].
            on_log: called every `log_every` steps and at the end with the step and a dictionary: the last lr
                and the means since the last call (loss, kl, ce, feature, label_agreement).

        Raises:
            NonFiniteError: on all ranks, if a loss is NaN or Inf. The host waits for the device only when it
                logs, so the error comes with the next log.
            ValueError: if there are too few batches, or the steps exceed the schedule.
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
        self.optimizer.zero_grad()  # the gradients would occupy memory during the next synthesis
        if self.step != end:
            raise ValueError(f"{end - self.step} batches too few")

    def train_step(self, batch: FeedBatch) -> DistillationLoss:
        """Update the student with a batch on the device; return the loss. Call `set_training(True)` first.

        With several ranks, `batch` is this rank's part, and the mean loss over the ranks is the global loss.
        """
        self._sgd.set_rate(self.config.rate_at(self.step, self.total_steps))
        loss = self._loss(batch)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss.total)
        self.optimizer.step()
        self.step += 1
        return loss

    def _loss(self, batch: FeedBatch) -> DistillationLoss:
        config, rank = self.config, self.accelerator.process_index
        images = batch.images.float()
        if batch.teacher_logits is None:
            mixes = self.step < config.mixed_steps(self.total_steps)
            images = varied(
                images, config, lambda name: generator(self.seed, name, self.step, rank), mixes=mixes
            )
        dropout = seeded(derive_seed(self.seed, "distill-forward", self.step, rank), images.device)
        with dropout, self.accelerator.autocast():
            teacher_logits, features = self._targets(images, batch)
            sizes = [(each.shape[2], each.shape[3]) if each.ndim == 4 else (1, 1) for each in features]
            with BatchNormOverRanks() if self._has_ranks else nullcontext():
                student_logits, aligned = self._module(images, sizes)
        return distillation_loss(
            student_logits,
            teacher_logits,
            batch.labels,
            temperature=config.temperature,
            loss=config.loss,
            standardize=config.standardize,
            dkd_weights=(config.dkd_alpha, config.dkd_beta),
            dist_weights=(config.dist_beta, config.dist_gamma),
            w_kl=config.w_kl,
            w_ce=config.w_ce,
            w_feature=config.w_feature,
            agrees=batch.agrees if config.ce_on_agreement else None,
            relative_agreement=batch.relative_agreement,
            features=list(zip(aligned, features, strict=True)),
        )

    def _targets(self, images: Tensor, batch: FeedBatch) -> tuple[Tensor, list[Tensor]]:
        """Return the teacher's logits and the feature for each head, stored ones if the batch has some."""
        if batch.teacher_logits is None:
            return self._teacher_outputs(images)
        pooled = batch.teacher_pooled
        return batch.teacher_logits, [] if pooled is None or not self.heads else [pooled]

    def _teacher_outputs(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            outputs = ask(self._teacher_forward, images, flip=self.config.teacher_flip)
        features = [outputs[path] for path in self._teacher_paths]
        if self.config.feature == "pooled":
            features = [feature.float().mean((2, 3)) for feature in features]
        return outputs["logits"], features

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
        """Put the student and the alignment heads into train or eval mode."""
        self.student.train(training)
        self.heads.train(training)

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides the remaining steps except their batches: tensors and plain values only."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "seed": self.seed,
            "student": self.student.state_dict(),
            "align": [head.state_dict() for head in self.heads],
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Raises UserError if it belongs to a run with another schedule or seed."""
        for name in ("total_steps", "seed"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"distill {name} is {getattr(self, name)}, but {state[name]} in the checkpoint; "
                    "resume with the settings that the run began with"
                )
        self.step = state["step"]
        self.student.load_state_dict(state["student"])
        stored = state["align"]
        if not isinstance(stored, list):  # an earlier version stored one head, or None
            stored = [] if stored is None else [stored]
        for head, weights in zip(self.heads, stored, strict=True):
            head.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
