"""The soft terms dkd and dist, and standardized logits, against formulas written out in float64."""

import copy
import math
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.feed.feed import FeedBatch
from engine.stages.kd_loss import DistillationLoss, distillation_loss
from tests.engine.stages.test_distill import batches, distiller

__all__ = ["batches"]

TEMPERATURES = [1.0, 4.0, 20.0]
LOSSES = [{"loss": "dkd"}, {"loss": "dist"}, {"loss": "kl", "standardize": True}]
LOSSES.append({"loss": "dkd", "standardize": True})
NAMES = ["dkd", "dist", "kl standardized", "dkd standardized"]
each_loss = pytest.mark.parametrize("settings", LOSSES, ids=NAMES)
at_each_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)


def soft(student: Tensor, teacher: Tensor, temperature: float = 4.0, **settings: Any) -> DistillationLoss:
    labels = torch.zeros(len(student), dtype=torch.long)
    return distillation_loss(
        student, teacher, labels, temperature=temperature, w_kl=1.0, w_ce=0.0, **settings
    )


def logits(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=draw, dtype=torch.float64) * 3
    return student, teacher


def softmax(row: list[float], temperature: float) -> list[float]:
    parts = [math.exp((x - max(row)) / temperature) for x in row]
    return [part / sum(parts) for part in parts]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def dkd_parts(student: list[float], teacher: list[float], temperature: float) -> tuple[float, float, float]:
    """Return TCKD, NCKD and the teacher's probability of its top-1 class."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    top = p.index(max(p))
    tckd = kl([p[top], 1 - p[top]], [q[top], 1 - q[top]])
    of_p, of_q = ([x / (1 - side[top]) for i, x in enumerate(side) if i != top] for side in (p, q))
    return tckd, kl(of_p, of_q), p[top]


def pearson(a: list[float], b: list[float]) -> float:
    a, b = [x - fmean(a) for x in a], [x - fmean(b) for x in b]
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(
        sum(x * x for x in a) * sum(y * y for y in b)
    )


def dist_parts(student: Tensor, teacher: Tensor, temperature: float) -> tuple[float, float]:
    """Return the inter-class and the intra-class term."""
    q, p = ([softmax(row, temperature) for row in side.tolist()] for side in (student, teacher))
    inter = 1 - fmean(pearson(a, b) for a, b in zip(q, p, strict=True))
    columns = zip(zip(*q, strict=True), zip(*p, strict=True), strict=True)
    return inter, 1 - fmean(pearson(list(a), list(b)) for a, b in columns)


def z_scores(values: Tensor) -> Tensor:
    rows = []
    for row in values.tolist():
        deviation = math.sqrt(fmean((x - fmean(row)) ** 2 for x in row))
        rows.append([(x - fmean(row)) / (deviation + 1e-7) for x in row])
    return torch.tensor(rows, dtype=values.dtype)


@at_each_temperature
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (7, 10), (3, 101)])
def test_dkd_value(rows: int, classes: int, temperature: float) -> None:
    student, teacher = logits(rows, classes)
    parts = [dkd_parts(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    expected = temperature**2 * fmean(0.7 * tckd + 3 * nckd for tckd, nckd, _ in parts)
    loss = soft(student, teacher, temperature, loss="dkd", dkd_weights=(0.7, 3.0))
    assert loss.total.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert loss.kl.item() == loss.total.item()


@at_each_temperature
def test_the_parts_of_dkd_make_up_kl(temperature: float) -> None:
    for student, teacher in zip(*(side.split(1) for side in logits(5, 10)), strict=True):
        tckd = soft(student, teacher, temperature, loss="dkd", dkd_weights=(1.0, 0.0)).kl
        nckd = soft(student, teacher, temperature, loss="dkd", dkd_weights=(0.0, 1.0)).kl
        rest = 1 - (teacher / temperature).softmax(1).max()
        torch.testing.assert_close(tckd + rest * nckd, soft(student, teacher, temperature).kl)


@at_each_temperature
@pytest.mark.parametrize(("rows", "classes"), [(2, 3), (7, 10), (5, 101)])
def test_dist_value(rows: int, classes: int, temperature: float) -> None:
    student, teacher = logits(rows, classes)
    inter, intra = dist_parts(student, teacher, temperature)
    expected = temperature**2 * (0.7 * inter + 3 * intra)
    loss = soft(student, teacher, temperature, loss="dist", dist_weights=(0.7, 3.0))
    assert loss.total.item() == pytest.approx(expected, rel=1e-9)
    assert loss.kl.item() == loss.total.item()


def test_dist_of_one_row_has_only_the_inter_class_term() -> None:
    student, teacher = logits(1, 10)
    expected = 16 * (1 - pearson(softmax(student[0].tolist(), 4), softmax(teacher[0].tolist(), 4)))
    assert soft(student, teacher, loss="dist").total.item() == pytest.approx(expected, rel=1e-9)


def test_dist_of_a_constant_side_is_finite_and_pulls_nothing() -> None:
    student, teacher = torch.zeros(3, 10, requires_grad=True), logits(3, 10)[1].float()
    loss = soft(student, teacher, loss="dist").total
    loss.backward()
    assert loss.item() == pytest.approx(16 * (0.5 + 0.5))
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("loss", ["kl", "dkd"])
def test_standardized_value(loss: str) -> None:
    student, teacher = logits(6, 10)
    ours = soft(student, teacher, loss=loss, standardize=True)
    exact = soft(z_scores(student), z_scores(teacher), loss=loss)
    torch.testing.assert_close(ours.kl, exact.kl)
    scaled = soft(5 * student + 2, teacher / 3, loss=loss, standardize=True)
    torch.testing.assert_close(scaled.kl, exact.kl, rtol=1e-5, atol=0)


@each_loss
@at_each_temperature
def test_gradients_equal_numerical_ones(settings: dict[str, Any], temperature: float) -> None:
    sides = [x.requires_grad_() for x in logits(4, 5)]
    assert torch.autograd.gradcheck(lambda s, t: soft(s, t, temperature, **settings).total, sides)


@each_loss
def test_equal_logits_have_no_loss_and_a_shift_changes_nothing(settings: dict[str, Any]) -> None:
    student, teacher = logits(4, 10)
    assert soft(student, student, **settings).total.item() == pytest.approx(0, abs=1e-12)
    shift = torch.tensor([[100.0], [-7.0], [0.0], [1.0]])
    torch.testing.assert_close(
        soft(student + shift, teacher - 50, **settings).total, soft(student, teacher, **settings).total
    )


EXTREMES = {
    "far apart": ([[1e4, -1e4, 0.0], [0.0, 1.0, 2.0]], [[-1e4, 1e4, 0.0], [0.0, 2.0, 1.0]]),
    "sure": ([[1e4, -1e4, -1e4]] * 2, [[1e4, -1e4, -1e4]] * 2),
    "one row": ([[1e4, -1e4, 3.0]], [[0.0, 1e4, -1e4]]),
    "equal classes": ([[7.1] * 5] * 2, [[-3.3] * 5] * 2),
    "one class": ([[3.0]] * 2, [[-2.0]] * 2),
    "two classes": ([[1e4, -1e4]] * 2, [[-1e4, 1e4]] * 2),
}


@each_loss
@at_each_temperature
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_logits_have_finite_losses_and_gradients(
    case: str, temperature: float, settings: dict[str, Any]
) -> None:
    student, teacher = (torch.tensor(side, requires_grad=True) for side in EXTREMES[case])
    loss = soft(student, teacher, temperature, **settings).total
    loss.backward()
    assert loss.isfinite()
    for side in (student, teacher):
        assert side.grad is not None
        assert side.grad.isfinite().all()
    if case == "one class":
        assert loss.item() == 0


@pytest.mark.parametrize("settings", [LOSSES[0], *LOSSES[2:]], ids=[NAMES[0], *NAMES[2:]])
def test_the_mean_over_equal_parts_is_the_loss_of_the_batch(settings: dict[str, Any]) -> None:
    student, teacher = logits(8, 10)
    parts = [soft(*sides, **settings).total for sides in zip(student.chunk(2), teacher.chunk(2), strict=True)]
    torch.testing.assert_close(sum(parts) / 2, soft(student, teacher, **settings).total)


def test_the_inter_class_term_of_dist_too_but_not_the_intra_class_one() -> None:
    student, teacher = logits(8, 10)
    for weights, holds in (((1.0, 0.0), True), ((0.0, 1.0), False)):
        parts = [
            soft(*sides, loss="dist", dist_weights=weights).total.item()
            for sides in zip(student.chunk(2), teacher.chunk(2), strict=True)
        ]
        whole = soft(student, teacher, loss="dist", dist_weights=weights).total.item()
        assert (fmean(parts) == pytest.approx(whole)) == holds


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    student, teacher = (x.to(dtype) for x in logits(5, 10))
    ours = soft(student.requires_grad_(), teacher, **settings).total
    assert ours.dtype == torch.float32
    exact = soft(student.detach().double(), teacher.double(), **settings).total
    assert ours.item() == pytest.approx(exact.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(ours, student)
    assert gradient.dtype == dtype


@each_loss
def test_total_weighs_the_soft_term_and_the_raw_cross_entropy(settings: dict[str, Any]) -> None:
    student, teacher = logits(4, 5)
    labels, agrees = torch.tensor([0, 1, 2, 3]), torch.tensor([True, True, False, True])
    loss = distillation_loss(
        student.requires_grad_(),
        teacher,
        labels,
        temperature=4.0,
        w_kl=0.5,
        w_ce=2.0,
        agrees=agrees,
        relative_agreement=0.9,
        **settings,
    )
    ce = 0.9 * torch.nn.functional.cross_entropy(student[agrees], labels[agrees])
    torch.testing.assert_close(loss.ce, ce.detach())
    torch.testing.assert_close(loss.kl, soft(student, teacher, **settings).kl)
    torch.testing.assert_close(loss.total, (0.5 * loss.kl + 2 * ce))
    assert not any(part.requires_grad for part in loss[1:])


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        (
            {"loss": "dkd", "standardize": True, "dkd_alpha": 2.0, "dkd_beta": 3.0},
            {"dkd_weights": (2.0, 3.0)},
        ),
        ({"loss": "dist", "dist_beta": 2.0, "dist_gamma": 3.0}, {"dist_weights": (2.0, 3.0)}),
    ],
    ids=["dkd", "dist"],
)
def test_the_settings_of_the_soft_term_are_used(
    settings: dict[str, Any], weights: dict[str, Any], batches: list[FeedBatch]
) -> None:
    ours = distiller(w_feature=0.0, w_ce=0.0, w_kl=0.5, **settings)
    student = copy.deepcopy(ours.student).train()
    ours.set_training(True)
    loss = ours.train_step(batches[0])
    terms = {"temperature": 4.0, "w_kl": 0.5, "w_ce": 0.0, "loss": settings["loss"], **weights}
    with torch.no_grad():
        logits = [model.with_features(batches[0].images, [])[0] for model in (student, ours.teacher)]
        standardize = settings.get("standardize", False)
        expected = distillation_loss(*logits, batches[0].labels, standardize=standardize, **terms)
    torch.testing.assert_close(loss.kl, expected.kl, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(loss.total.detach(), expected.total, rtol=1e-3, atol=1e-6)
