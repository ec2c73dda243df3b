"""The published loops make better images, train a student, and stop when their clock says so."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.clock import Clock
from bench.published import csd, fast_dfkd
from bench.published.generator import LATENT, PublishedGenerator
from bench.published.hooks import attach_averaged
from bench.published.memory import MemoryBank, PublishedPair, cosine
from bench.published.turns import Turns
from engine.models.classifier import Classifier
from engine.models.networks import wrn_16_1

FAST = fast_dfkd.FastSettings(batch=8, steps=4, batches=5, kd_batch=16, kd_lr=0.05)
CSD = csd.CsdSettings(batch=8, bank_batches=2, bank_steps=8, rounds=3, round_steps=4, kd_batch=8, kd_lr=0.02)


class Counter:
    """A clock that advances by a second whenever it is read."""

    seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


@pytest.fixture
def pair() -> PublishedPair:
    torch.manual_seed(0)
    teacher, student = (
        Classifier(wrn_16_1(3, 1), num_classes=3, in_channels=1, mean=[0.2], std=[0.3], feature_path="relu")
        for _ in range(2)
    )
    with torch.no_grad():
        teacher.network.fc.weight.mul_(30)  # logits as wide as a trained teacher's, so there is much to learn
    return PublishedPair.of(teacher, student, (16, 16))


def divergence(pair: PublishedPair, bank: MemoryBank) -> float:
    """Return the KL of teacher and student on the bank, at the temperature of the loops."""
    images = bank.images[0].float() / 255
    pair.student.train()  # its running statistics are still young
    with torch.no_grad():
        soft, target = (network(images) / 20 for network in (pair.student, pair.teacher))
        return F.kl_div(soft.log_softmax(1), target.softmax(1), reduction="batchmean").item()


def test_fast_dfkd_learns_where_to_start(pair: PublishedPair) -> None:
    loop = fast_dfkd.FastDfkd(pair, FAST)
    loop.synthesize(adversarial=False)
    first = loop.losses
    for _ in range(5):
        loop.synthesize(adversarial=True)
    assert first[-1] < first[0], "the steps of a batch lower its loss"
    assert loop.losses[0] < first[0], "the meta-generator starts lower than before"
    assert len(loop.bank) == 6 * 8


def test_fast_dfkd_trains_the_student(pair: PublishedPair) -> None:
    loop = fast_dfkd.FastDfkd(pair, FAST)
    for _ in range(2):
        loop.synthesize(adversarial=False)
    before = divergence(pair, loop.bank)
    losses = [loop.distill(share=0.0) for _ in range(25)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert divergence(pair, loop.bank) < before


def test_csd_makes_images_and_trains_student_and_head(pair: PublishedPair) -> None:
    loop = csd.Csd(pair, CSD, seed=0)
    short, long = (loop.synthesize(steps, adversarial=False) for steps in (1, 10))
    assert long.best_loss < short.best_loss
    before, head = divergence(pair, loop.bank), loop.head.layers[0].weight.clone()
    losses = [loop.distill(share=0.0) for _ in range(25)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert divergence(pair, loop.bank) < before
    assert not torch.equal(head, loop.head.layers[0].weight)
    assert loop.synthesize(2, adversarial=True).head is loop.head
    assert len(loop.bank) == 3 * 8


@pytest.mark.parametrize(
    "train",
    [
        lambda pair, clock: fast_dfkd.train(pair, clock, FAST),
        lambda pair, clock: csd.train(pair, clock, CSD, 0),
    ],
    ids=["fast-dfkd", "csd"],
)
def test_a_loop_ends_with_its_clock(
    train: Callable[[PublishedPair, Clock], tuple[int, int]], pair: PublishedPair
) -> None:
    clock = Clock(seconds=400.0, now=Counter())
    images, steps = train(pair, clock)
    assert images >= 2 * 8, "one batch before the training and one during it"
    assert steps > 10
    assert clock.elapsed == pytest.approx(400, abs=12)
    assert 3 <= len(clock.snapshots) <= 10
    first, last = (clock.snapshots[i].weights["network.fc.weight"] for i in (0, -1))
    assert not torch.equal(first, last)


def test_turns_spread_batches_over_half_of_the_time() -> None:
    time = [0.0]
    turns = Turns(clock=Clock(seconds=100.0, now=lambda: time[0]), batches=2)

    def take(seconds: float) -> None:
        time[0] += seconds

    assert turns.has_time_until(0.0)
    turns.make(lambda: take(5))
    assert turns.has_time_until(9)
    assert not turns.has_time_until(7)
    turns.restart(100)
    made = []
    while time[0] < 100:
        if turns.is_due:
            turns.make(lambda: take(5))
            made.append(time[0])
        else:
            take(1)
    assert 40 <= turns.seconds <= 50
    assert max(made) <= 95
    gaps = [b - a for a, b in zip(made, made[1:], strict=False)]
    assert max(gaps) <= 12


def test_an_averaging_hook_stands_in_for_many_batches() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(2).eval()
    (hook,) = attach_averaged(nn.Sequential(layer), 0.9)
    first, second = torch.randn(2, 4, 2, 3, 3)
    layer(first)
    expected = first.var((0, 2, 3), unbiased=False).sub(1).norm() + first.mean((0, 2, 3)).norm()
    torch.testing.assert_close(hook.loss, expected)
    hook.remember()
    layer(second)
    mean = 0.9 * first.mean((0, 2, 3)) + 0.1 * second.mean((0, 2, 3))
    var = 0.9 * first.var((0, 2, 3), unbiased=False) + 0.1 * second.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(hook.loss, var.sub(1).norm() + mean.norm())


def test_a_bank_draws_different_images_of_8_bits() -> None:
    bank = MemoryBank()
    bank.add(torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2) / 3, torch.arange(4))
    images, labels = bank.draw(10)
    assert sorted(labels.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(images[:, 0, 0, 0], labels / 3)
    assert len(bank.draw(2)[1]) == 2


@pytest.mark.parametrize("is_grey", [True, False])
def test_the_generator_makes_rgb_images(is_grey: bool) -> None:
    images = PublishedGenerator((16, 32), is_grey=is_grey)(torch.randn(2, LATENT))
    assert images.shape == (2, 3, 16, 32)
    assert torch.equal(images[:, 0], images[:, 1]) == is_grey


def test_the_rate_falls_to_zero() -> None:
    assert [cosine(0.2, share) for share in (0.0, 0.5, 1.0, 1.2)] == pytest.approx([0.2, 0.1, 0.0, 0.0])
