"""Accuracy and agreement of known predictions, in float32 and eval mode."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.distributed import open_accelerator
from engine.models.classifier import Classifier
from engine.stages.evaluate import accuracy, evaluate, predict
from tests.rounding import as_torch_rounds, rounding


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


class BrightestChannel(nn.Module):
    """A network whose logits are the mean of each channel plus a shift."""

    def __init__(self, *shift: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + self.shift


def classifier(network: nn.Module) -> Classifier:
    return Classifier(network, num_classes=3, in_channels=3, mean=(0.0,), std=(1.0,), feature_path=None)


def images_whose_brightest_channel_is(*channels: int) -> Tensor:
    images = torch.full((len(channels), 3, 4, 4), 10, dtype=torch.uint8)
    images[torch.arange(len(channels)), list(channels)] = 200
    return images


@pytest.mark.parametrize("batch_size", [1, 3, 500])
def test_figures_of_known_answers(batch_size: int, accelerator: Accelerator) -> None:
    images = images_whose_brightest_channel_is(0, 1, 2, 2, 1, 0, 0, 0)
    labels = torch.tensor([0, 1, 2, 0, 0, 0, 0, 1])
    teacher = classifier(BrightestChannel(0, 0, 0))
    student = classifier(BrightestChannel(0, 0, 5))  # always class 2
    assert predict([teacher, student], images, accelerator, batch_size).tolist() == [
        [0, 1, 2, 2, 1, 0, 0, 0],
        [2] * 8,
    ]
    assert accuracy(teacher, images, labels, accelerator, batch_size) == 5 / 8
    assert accuracy(student, images, labels, accelerator, batch_size) == 1 / 8
    assert evaluate(teacher, student, images, labels, accelerator, batch_size) == (5 / 8, 1 / 8, 2 / 8)


def test_full_range_of_uint8_reaches_the_network_as_zero_to_one(accelerator: Accelerator) -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.mean((2, 3))

    predict(
        [classifier(Spy())],
        torch.arange(0, 256, 5, dtype=torch.uint8).view(1, 1, 4, 13).expand(2, 3, 4, 13),
        accelerator,
    )
    assert torch.equal(seen[0][0, 0].flatten() * 255, torch.arange(0, 256, 5).float())


def noisy_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)
    )


def test_runs_in_eval_mode_and_puts_every_module_back(accelerator: Accelerator) -> None:
    model = classifier(noisy_network())
    model.train()
    model.network[1].eval()  # a BatchNorm frozen inside a network that trains
    before = [module.training for module in model.modules()]
    statistics = model.network[1].running_mean.clone()
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    first, again = (predict([model], images, accelerator) for _ in range(2))
    assert torch.equal(first, again)  # no dropout
    assert torch.equal(model.network[1].running_mean, statistics)
    assert [module.training for module in model.modules()] == before


def test_puts_the_modes_back_after_an_error(accelerator: Accelerator) -> None:
    model = classifier(noisy_network()).train()
    with pytest.raises(RuntimeError):
        predict([model], torch.zeros(2, 3, 5, 5, dtype=torch.uint8), accelerator)
    assert all(module.training for module in model.modules())


def test_evaluation_is_in_float32_in_a_run_of_any_precision() -> None:
    accelerator = open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="bf16", threads=2)))
    dtypes = []
    model = classifier(noisy_network())
    model.network[5].register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    with accelerator.autocast():
        predict([model], torch.zeros(2, 3, 8, 8, dtype=torch.uint8), accelerator)
    assert dtypes == [torch.float32]


@as_torch_rounds()
def test_convolutions_are_not_rounded_to_tf32(accelerator: Accelerator) -> None:
    before, seen = rounding(), []
    assert before[0] == "tf32", "torch's default"
    model = classifier(noisy_network())
    model.network[0].register_forward_hook(lambda *_: seen.append(rounding()))
    predict([model], torch.zeros(2, 3, 8, 8, dtype=torch.uint8), accelerator)
    with pytest.raises(RuntimeError):
        predict([model], torch.zeros(2, 3, 5, 5, dtype=torch.uint8), accelerator)
    assert seen == [("ieee", "ieee")] * 2
    assert rounding() == before


def test_labels_of_another_number_are_refused(accelerator: Accelerator) -> None:
    model = classifier(BrightestChannel(0, 0, 0))
    with pytest.raises(ValueError, match="2 predictions against 1"):
        accuracy(model, images_whose_brightest_channel_is(0, 1), torch.tensor([0]), accelerator)
