"""The distiller on stored outputs of the teacher, and with Muon."""

from typing import Any

import pytest
import torch

from engine.feed.feed import FeedBatch
from tests.engine.stages.test_distill import batches, distiller, same, teacher, train, weights

__all__ = ["batches"]
STORED: dict[str, Any] = {"w_ce": 0.0, "w_feature": 0.0, "views": 2}


def with_outputs(batches: list[FeedBatch], dtype: torch.dtype = torch.float16) -> list[FeedBatch]:
    asked, given = teacher(), []
    for batch in batches:
        with torch.no_grad():
            logits, (feature,) = asked.with_features(batch.images, [str(asked.feature_path)])
        stored = logits.to(dtype), feature.mean((2, 3)).to(dtype)
        given.append(batch._replace(teacher_logits=stored[0], teacher_pooled=stored[1]))
    return given


@pytest.mark.parametrize("feature", [{}, {"w_feature": 10.0, "feature": "pooled"}], ids=["logits", "pooled"])
def test_stored_outputs_train_the_same_student_as_asking_the_teacher(
    feature: dict[str, Any], batches: list[FeedBatch]
) -> None:
    asking, stored = distiller(**(STORED | {"views": 0} | feature)), distiller(**(STORED | feature))
    assert len(stored.heads) == bool(feature)
    train(asking, batches, 6)
    train(stored, with_outputs(batches, torch.float32), 6)
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


def test_the_pooled_feature_is_learned(batches: list[FeedBatch]) -> None:
    losses: list[float] = []
    ours = distiller(40, **(STORED | {"w_feature": 10.0, "feature": "pooled"}))
    given = with_outputs(batches)
    train(ours, given, 40, on_log=lambda _, means: losses.append(means["feature"]), log_every=10)
    assert losses[-1] < 0.7 * losses[0]


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
