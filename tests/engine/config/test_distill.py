"""Settings of distillation: the learning rate, and what is refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from engine.config.distill import DistillConfig
from engine.errors import UserError


def test_learning_rate_warms_up_and_then_follows_torchs_cosine() -> None:
    config = DistillConfig(lr=0.4, warmup_steps=4)
    assert [config.lr * config.rate_at(step, 20) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 16)
    for step in range(4, 21):
        assert config.lr * config.rate_at(step, 20) == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-9)
        sgd.step()
        cosine.step()


BAD: dict[str, list[Any]] = {
    "batch_size": [1, 0],
    "temperature": [0.0, -1.0, math.inf, math.nan],
    "lr": [0.0, math.nan],
    "momentum": [1.0, -0.1],
    "w_kl": [-1.0, math.nan],
    "w_ce": [-1.0],
    "w_feature": [-1.0, math.inf],
    "weight_decay": [-1e-4],
    "warmup_steps": [-1],
    "mixup": [-0.1, 1.5],
    "cutmix": [-0.1, 1.5],
    "mix_until": [0.0, 1.5, math.nan],
    "warp": [-0.1, 1.5, math.nan],
    "dkd_alpha": [-1.0],
    "dkd_beta": [-0.5, math.nan],
    "dist_beta": [-1.0],
    "dist_gamma": [math.inf],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BAD.items() for value in values], ids=str
)
def test_bad_settings_name_their_field(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"distill\.{field} is {value};"):
        DistillConfig(**{field: value})


def test_the_order_of_taps_does_not_matter() -> None:
    one, other = DistillConfig(taps={"b": "c", "a": "d"}), DistillConfig(taps={"a": "d", "b": "c"})
    assert one.teacher_taps == other.teacher_taps == ["a", "b"]
    assert one.student_taps == other.student_taps == ["d", "c"]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: DistillConfig(w_kl=0, w_ce=0, w_feature=0), "w_kl"),
        (lambda: DistillConfig(nesterov=True, momentum=0), "nesterov"),
        (lambda: DistillConfig(teacher_flip=True, flip=False, w_feature=0), r"teacher_flip .*distill\.flip"),
        (lambda: DistillConfig(teacher_flip=True), r"teacher_flip .*set distill\.feature to pooled"),
        (
            lambda: DistillConfig(teacher_flip=True, feature="pooled", taps={"a": "b"}),
            r"teacher_flip .*distill\.taps to null",
        ),
        (lambda: DistillConfig(mixup=0.5), "mixup"),
        (lambda: DistillConfig(cutmix=0.5), "cutmix"),
        (lambda: DistillConfig(cutmix=0.5, views=1, w_ce=0, w_feature=0), "cutmix"),
        (lambda: DistillConfig(warp=0.5, views=1, w_feature=0), "warp"),
        (lambda: DistillConfig(mixup=1.0, mix_until=0.8, views=2, w_ce=0, w_feature=0), "mix_until"),
        (
            lambda: DistillConfig(taps={"a": "b"}, views=1, feature="pooled"),
            r"taps .*set distill\.views to 0",
        ),
        (lambda: DistillConfig(taps={"a": "b"}, w_feature=0), r"taps .*set distill\.w_feature above 0"),
        (lambda: DistillConfig(loss="dist", standardize=True), "standardize"),
        (lambda: DistillConfig(loss="dkd", dkd_alpha=0, dkd_beta=0), "dkd_alpha"),
        (lambda: DistillConfig(loss="dist", dist_beta=0, dist_gamma=0), "dist_beta"),
    ],
    ids=[
        "no term at all",
        "nesterov without momentum",
        "a mirrored teacher without mirror images",
        "maps of mirror images",
        "taps of mirror images",
        "mixup with labels",
        "cutmix with labels",
        "cutmix with stored views",
        "warp with stored views",
        "only mixed views are stored",
        "taps with stored views",
        "taps without a weight",
        "standardized correlations",
        "dkd without weights",
        "dist without weights",
    ],
)
def test_bad_combinations_name_their_field(make: Callable[[], DistillConfig], field: str) -> None:
    with pytest.raises(UserError, match=rf"distill\.{field}"):
        make()


def test_the_weights_of_another_loss_do_not_matter() -> None:
    assert DistillConfig(loss="dkd", standardize=True, dist_beta=0, dist_gamma=0).standardize
    assert DistillConfig(loss="kl", dkd_alpha=0, dkd_beta=0).loss == "kl"
