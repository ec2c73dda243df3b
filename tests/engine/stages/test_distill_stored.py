"""The distiller on stored outputs of the teacher, and with Muon."""

from typing import Any

import pytest
import torch

from engine.feed.feed import FeedBatch
from tests.engine.stages.test_distill import batches, distiller, same, teacher, train, weights

__all__ = ["batches"]
STORED: dict[str, Any] = {"w_ce": 0.0, "w_feature": 0.0, "views": 2}


def with_outputs(batches: list[FeedBatch], *, half: bool = True) -> list[FeedBatch]:
    asked = teacher()
    with torch.no_grad():
        logits = [asked(batch.images) for batch in batches]
    stored = [each.half() if half else each for each in logits]
    return [batch._replace(teacher_logits=each) for batch, each in zip(batches, stored, strict=True)]


def test_stored_outputs_train_the_same_student_as_asking_the_teacher(batches: list[FeedBatch]) -> None:
    asking, stored = distiller(**(STORED | {"views": 0})), distiller(**STORED)
    train(asking, batches, 6)
    train(stored, with_outputs(batches, half=False), 6)
    for one, other in zip(weights(asking.student), weights(stored.student), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_not_asked_and_views_are_not_mixed_again(
    batches: list[FeedBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = with_outputs(batches)
    plain, mixing = distiller(**STORED), distiller(**STORED, mixup=1.0)
    for ours in (plain, mixing):
        monkeypatch.setattr(ours, "_teacher_forward", None)
        train(ours, given, 3)
    assert same(weights(plain.student), weights(mixing.student))


def test_muon_resumes_exactly(batches: list[FeedBatch]) -> None:
    given, settings = with_outputs(batches), STORED | {"optimizer": "muon"}
    whole, first, second = (distiller(**settings) for _ in range(3))
    train(whole, given, 6)
    train(first, given, 3)
    second.load_state_dict(first.state_dict())
    train(second, given, 3)
    assert same(weights(whole.student), weights(second.student))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_muon_learns_the_teacher(precision: str, batches: list[FeedBatch]) -> None:
    losses: list[float] = []
    ours = distiller(40, precision, optimizer="muon", **STORED)
    train(ours, with_outputs(batches), 40, on_log=lambda _, means: losses.append(means["kl"]), log_every=10)
    assert losses[-1] < 0.5 * losses[0]
