"""The training loop of the assets: resuming, the moving average, and checkpoints of another training."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.pretraining.fit import Fit, fit
from engine.seeding import generator

CONFIG = Fit(epochs=4, steps_per_epoch=3, max_lr=0.1, ema_decay=0.9)


def train(checkpoint: Path, config: Fit = CONFIG, stop_after: int = 99) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)

    def losses(epoch: int) -> Iterator[Tensor]:
        if epoch >= stop_after:
            raise KeyboardInterrupt
        draw = generator(0, epoch)
        for _ in range(config.steps_per_epoch):
            yield module(torch.randn(5, 3, generator=draw)).square().mean()

    return fit("line", module, optimizer, losses, config, checkpoint)


def test_a_cut_training_ends_as_a_straight_one(tmp_path: Path) -> None:
    straight = train(tmp_path / "straight.pt")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut.pt", stop_after=2)
    resumed = train(tmp_path / "cut.pt")
    assert torch.equal(resumed.weight, straight.weight)
    assert torch.equal(train(tmp_path / "cut.pt").weight, straight.weight), (
        "a finished one is not trained again"
    )


def test_the_average_lies_behind_the_weights(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain.pt", replace(CONFIG, ema_decay=None))
    average = train(tmp_path / "average.pt")
    begin = nn.Linear(3, 1)
    torch.manual_seed(0)
    begin.reset_parameters()
    assert not torch.equal(plain.weight, average.weight)
    assert plain.weight.norm() < average.weight.norm() < begin.weight.norm(), "the loss pulls to zero"


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "fit.pt")
    with pytest.raises(UserError, match=r"--work: .*fit\.pt was made with other settings"):
        train(tmp_path / "fit.pt", replace(CONFIG, seed=1))
