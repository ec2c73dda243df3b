"""Distillation loss through the registered op, against torch's own losses in float64.

Triton runs on a GPU, or in its interpreter with TRITON_INTERPRET=1, which conftest.py sets if there is none.
"""

import pytest
import torch
import torch.nn.functional as F

from kernels import _native
from kernels.backend import backend_for
from kernels.kd_loss import kd_loss
from kernels.kd_loss.reference import kd_loss_reference
from tests.kernels.kd_loss.cases import (
    DTYPES,
    EXTREMES,
    LOSS_TOLERANCE,
    TEMPERATURES,
    TOLERANCES,
    assert_right,
    draw,
    ids,
    interpreted,
    run,
    tolerances,
)

SHAPES = [(1, 1), (3, 7), (41, 401), (5, 1271), (2, 21843)]
STANDARDIZE = pytest.mark.parametrize("standardize", [False, True], ids=["raw", "standardized"])


@STANDARDIZE
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtypes", DTYPES, ids=ids)
def test_values_and_gradients(
    device: str, dtypes: tuple[torch.dtype, torch.dtype], temperature: float, standardize: bool
) -> None:
    for rows, classes in SHAPES:
        student, teacher, labels = draw(min(rows, 6) if interpreted() else rows, classes)
        assert_right(
            student.to(dtypes[0]),
            teacher.to(dtypes[1]),
            labels,
            device,
            temperature=temperature,
            w_kl=0.7,
            w_ce=1.5,
            label_smoothing=0.1,
            standardize=standardize,
            atol=4e-8
            if standardize and torch.float16 in dtypes
            else 1e-8,  # float16 has steps of 6e-8 near 0
        )


@STANDARDIZE
@pytest.mark.parametrize("with_labels", [True, False], ids=["labels", "no_labels"])
@pytest.mark.parametrize("wanted", ["", "s", "t", "st"])
def test_each_combination_of_gradients(
    device: str, wanted: str, with_labels: bool, standardize: bool
) -> None:
    student, teacher, labels = draw(6, 37)
    labels = labels if with_labels else None
    assert_right(student, teacher, labels, device, wanted, temperature=4.0, standardize=standardize)


@STANDARDIZE
@pytest.mark.parametrize("apart", [1.0, 0.1, 1e-3])
def test_nearly_equal_distributions_keep_their_relative_accuracy(
    device: str, apart: float, standardize: bool
) -> None:
    student, teacher, _ = draw(4, 1000, spread=2.0, apart=apart)
    settings = {"temperature": 20.0, "standardize": standardize}
    losses, gradients = run(kd_loss, student.to(device), teacher.to(device), None, "st", **settings)
    exact, exact_gradients = run(
        kd_loss_reference, student.double(), teacher.double(), None, "st", **settings
    )
    assert losses.kl.item() == pytest.approx(exact.kl.item(), rel=1e-5 if standardize else 2e-6, abs=0)
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        assert (gradient.cpu() - expected).norm() < 3e-6 / apart * expected.norm()


@STANDARDIZE
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_equal_logits_have_no_kl_and_no_gradient(device: str, dtype: torch.dtype, standardize: bool) -> None:
    student = draw(5, 1271)[0].to(device, dtype)
    for teacher in (student, student.flip(0).flip(0)):
        losses, gradients = run(
            kd_loss, student, teacher, None, "st", temperature=20.0, standardize=standardize
        )
        assert losses.kl.item() == 0
        for gradient in gradients:
            assert not gradient.any()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_logits(device: str, case: str, temperature: float) -> None:
    student, teacher = map(torch.tensor, EXTREMES[case])
    kl = kd_loss_reference(student, teacher, temperature=temperature)[1].item()
    cancelled = max(temperature, kl / temperature)  # in the teacher's gradient, T p (log(p / q) - KL)
    assert_right(student, teacher, torch.tensor([1]), device, atol=1e-6 * cancelled, temperature=temperature)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, in the interpreter
def test_impossible_classes_of_the_teacher_add_nothing(device: str) -> None:
    student, teacher, labels = draw(3, 5000)
    student[:, :4500] = teacher[:, :4500] = -torch.inf
    labels = labels.where(labels < 0, 4900)
    losses, gradients = run(
        kd_loss, student.to(device), teacher.to(device), labels.to(device), "st", temperature=4.0
    )
    student, teacher, labels = student[:, 4500:], teacher[:, 4500:], labels.where(labels < 0, 400)
    exact, exact_gradients = run(
        kd_loss_reference, student.double(), teacher.double(), labels, "st", temperature=4.0
    )
    torch.testing.assert_close([x.cpu().double() for x in losses], list(exact), **LOSS_TOLERANCE)
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        assert not gradient[:, :4500].any()
        torch.testing.assert_close(gradient[:, 4500:].cpu().double(), expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 3])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
def test_ignored_rows_and_label_smoothing(
    device: str, ignored: str, ignore_index: int, label_smoothing: float
) -> None:
    student, teacher, _ = draw(6, 11)
    labels = torch.tensor([0, 10, 4, 5, 6, 7])
    labels[{"none": slice(0), "some": slice(1, 4), "all": slice(None)}[ignored]] = ignore_index
    settings = {"temperature": 4.0, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    assert_right(student, teacher, labels, device, **settings)


def test_if_every_row_is_ignored_ce_is_zero_and_only_kl_has_a_gradient(device: str) -> None:
    student, teacher, _ = (x.to(device) for x in draw(4, 9))
    ignored = torch.full((4,), -100, device=device)
    losses, gradients = run(kd_loss, student, teacher, ignored, "st", temperature=4.0)
    without, expected = run(kd_loss, student, teacher, None, "st", temperature=4.0)
    assert losses.ce.item() == 0
    assert losses.total == without.total
    assert all(map(torch.equal, gradients, expected))
    assert torch.isnan(F.cross_entropy(student, ignored))  # torch's own


@pytest.mark.parametrize("label", [-1, 11, 2**40, -(2**40)])
def test_a_label_that_is_no_class(device: str, label: int) -> None:
    student, teacher, _ = (x.to(device) for x in draw(6, 11))
    labels = torch.tensor([0, 10, -100, label, 6, 7], device=device)
    if backend_for(student) == "triton":  # a GPU does not wait for the host to look
        losses, gradients = run(kd_loss, student, teacher, labels, "st", temperature=4.0)
        assert losses.total.isnan()
        assert losses.ce.isnan()
        assert all(gradient.isfinite().all() for gradient in gradients)
    else:
        with pytest.raises(ValueError, match=rf"labels\[3\] is {label}, but there are 11 classes"):
            kd_loss(student, teacher, labels, temperature=4.0)


@STANDARDIZE
def test_rows_of_any_stride(device: str, standardize: bool) -> None:
    wide, teacher, labels = (x.to(device) for x in draw(6, 40))
    settings = {"temperature": 4.0, "standardize": standardize}
    for student, other in (
        (wide[:, 3:20], teacher[:, 1:18]),  # rows 40 apart, not aligned
        (wide[::2, :17], teacher[1::2, :17]),
        (wide[:, :6].T, teacher[:, :6]),  # columns apart
        (wide[:, :34:2], teacher[:1, :17].expand(6, 17)),  # one teacher's row for all
        (wide[:, :1], teacher.T[:6, :1]),  # one class
    ):
        target = labels[: len(student)] % student.shape[1]
        losses, gradients = run(kd_loss, student, other, target, "st", **settings)
        dense, expected = run(kd_loss, student.contiguous(), other.contiguous(), target, "st", **settings)
        assert list(losses) == list(dense)
        assert all(map(torch.equal, gradients, expected))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_gradients_are_multiplied_by_the_gradient_of_the_total(device: str, dtype: torch.dtype) -> None:
    student, teacher, labels = (x.to(device) for x in draw(4, 33))
    student = student.to(dtype).requires_grad_()
    for factor in (1.0, -0.3, 65536.0):
        (gradient,) = torch.autograd.grad(
            factor * kd_loss(student, teacher, labels, temperature=4.0).total, student
        )
        exact = student.detach().double().requires_grad_()
        total, *_ = kd_loss_reference(exact, teacher, labels, temperature=4.0)
        (expected,) = torch.autograd.grad(factor * total, exact)
        atol, rtol = tolerances(dtype)
        torch.testing.assert_close(
            gradient.double(), expected, atol=atol * float(expected.abs().max()), rtol=2 * rtol
        )


def test_a_loss_scale_saves_the_small_gradients_of_float16(device: str) -> None:
    student, teacher, _ = (x.to(device) for x in draw(8, 21843, spread=0.1, apart=0.1))
    student = student.half().requires_grad_()
    (gradient,) = torch.autograd.grad(65536 * kd_loss(student, teacher, temperature=1.0).total, student)
    exact = student.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(65536 * kd_loss_reference(exact, teacher, temperature=1.0)[0], exact)
    assert expected.abs().median() / 65536 < 6e-7  # ten steps of float16 without the scale
    torch.testing.assert_close(gradient.double(), expected, atol=1e-5, rtol=1e-3)


def test_swapped_sides_give_both_gradients_of_an_adversary(device: str) -> None:
    student, teacher, _ = draw(5, 37)
    ours_s, ours_t = (x.to(device).requires_grad_() for x in (student, teacher))
    ours = -kd_loss(ours_t, ours_s, temperature=1.0).total  # - KL(student || teacher)
    s, t = (x.double().requires_grad_() for x in (student, teacher))
    exact = -(s.softmax(1) * (s.log_softmax(1) - t.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(ours.cpu().double(), exact)
    for one, other in zip(
        torch.autograd.grad(ours, [ours_s, ours_t]), torch.autograd.grad(exact, [s, t]), strict=True
    ):
        torch.testing.assert_close(one.cpu().double(), other, atol=1e-7, rtol=1e-5)


def test_a_retained_graph_gives_the_same_gradient_again(device: str) -> None:
    student, teacher, labels = (x.to(device) for x in draw(4, 33))
    student.requires_grad_()
    total = kd_loss(student, teacher, labels, temperature=4.0).total
    (once,) = torch.autograd.grad(total, student, retain_graph=True)
    for _ in range(3):
        total.backward(retain_graph=True)
    torch.testing.assert_close(student.grad, 3 * once)


def test_the_same_bits_again(device: str) -> None:
    student, teacher, labels = (x.to(device) for x in draw(41, 401))
    first, second = (run(kd_loss, student, teacher, labels, "st", temperature=4.0) for _ in range(2))
    assert list(first[0]) == list(second[0])
    assert all(map(torch.equal, first[1], second[1]))


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("shape", [(41, 2001), (9, 21843)], ids=str)
def test_the_same_bits_with_any_number_of_threads(isa: str, shape: tuple[int, int]) -> None:
    student, teacher, labels = draw(*shape)
    threads, before = torch.get_num_threads(), _native.isa()
    results = []
    try:
        _native.select_isa(isa)
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(run(kd_loss, student, teacher, labels, "st", temperature=4.0))
    finally:
        torch.set_num_threads(threads)
        _native.select_isa(before)
    for losses, gradients in results[1:]:
        assert list(losses) == list(results[0][0])
        assert all(map(torch.equal, gradients, results[0][1]))


@pytest.mark.parametrize("with_labels", [True, False], ids=["labels", "no_labels"])
def test_empty_batch(with_labels: bool) -> None:
    student, teacher, labels = draw(0, 7)
    losses, gradients = run(kd_loss, student, teacher, labels if with_labels else None, "st", temperature=4.0)
    assert losses.kl.isnan()  # torch's mean over no rows
    assert losses.total.isnan()
    assert losses.ce.item() == 0
    assert [gradient.shape for gradient in gradients] == [(0, 7), (0, 7)]


def test_float64_is_computed_and_returned_in_float64() -> None:
    student, teacher, labels = draw(3, 7)
    losses, gradients = run(
        kd_loss, student.double(), teacher, labels, "st", temperature=4.0, label_smoothing=0.1
    )
    exact, expected = run(
        kd_loss_reference,
        student.double(),
        teacher.double(),
        labels,
        "st",
        temperature=4.0,
        label_smoothing=0.1,
    )
    torch.testing.assert_close(list(losses), list(exact), atol=1e-13, rtol=1e-13)
    torch.testing.assert_close(gradients[0], expected[0], atol=1e-14, rtol=1e-13)
    assert gradients[1].dtype == torch.float32


def test_the_reference_equals_torch() -> None:
    student, teacher, labels = draw(6, 11)
    student, teacher = student.double(), teacher.double()
    total, kl, ce = kd_loss_reference(
        student, teacher, labels, temperature=4.0, w_kl=0.7, w_ce=1.5, label_smoothing=0.1
    )
    log_q, p = F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1)
    torch.testing.assert_close(kl, 16 * F.kl_div(log_q, p, reduction="batchmean"))
    torch.testing.assert_close(ce, F.cross_entropy(student, labels, label_smoothing=0.1))
    torch.testing.assert_close(total, 0.7 * kl + 1.5 * ce)


@STANDARDIZE
def test_closed_form_gradients_equal_numerical_ones(standardize: bool) -> None:
    student, teacher, labels = draw(4, 5)
    inputs = student.double().requires_grad_(), teacher.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, t: (
            kd_loss(s, t, labels, temperature=4.0, label_smoothing=0.1, standardize=standardize).total
        ),
        inputs,
    )
