"""Accuracy and agreement of known predictions, in float32 and eval mode."""

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.distributed import open_accelerator
from engine.models.classifier import Classifier
from engine.stages.evaluate import accuracy, evaluate, in_float32
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


def measure(classifiers: dict[str, Classifier], images: Tensor, labels: Tensor, accelerator, batch_size=500):
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    with in_float32(classifiers, accelerator) as networks:
        return evaluate(networks, batches, 3)


def logits_of(classifier: Classifier, images: Tensor, accelerator: Accelerator) -> Tensor:
    with in_float32({"x": classifier}, accelerator) as networks:
        return networks["x"](images)


@pytest.mark.parametrize("batch_size", [1, 3, 500])
def test_figures_of_known_answers(batch_size: int, accelerator: Accelerator) -> None:
    images = images_whose_brightest_channel_is(0, 1, 2, 2, 1, 0, 0, 0)
    labels = torch.tensor([0, 1, 2, 0, 0, 0, 0, 1])
    teacher = classifier(BrightestChannel(0, 0, 0))
    student = classifier(BrightestChannel(0, 0, 5))  # always class 2
    found = measure({"teacher": teacher, "student": student}, images, labels, accelerator, batch_size)
    assert found.shares() == {
        "teacher_top1": 5 / 8,
        "student_top1": 1 / 8,
        "teacher_top5": None,
        "student_top5": None,
        "agreement": 2 / 8,
    }
    assert (found.images, found.images_by_class) == (8, (5, 2, 1))
    assert found.per_class(["ape", "bee", "cow"]) == {
        "ape": {"images": 5, "teacher": 3 / 5, "student": 0.0},
        "bee": {"images": 2, "teacher": 1 / 2, "student": 0.0},
        "cow": {"images": 1, "teacher": 1.0, "student": 1.0},
    }
    assert accuracy(teacher, images, labels, accelerator, batch_size) == 5 / 8
    assert accuracy(student, images, labels, accelerator, batch_size) == 1 / 8


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_top_5_counts_the_five_largest_logits(batch_size: int) -> None:
    logits = torch.tensor(
        [
            [7.0, 6, 5, 4, 3, 2, 1],  # label 4: fifth
            [7.0, 6, 5, 4, 3, 2, 1],  # label 5: sixth
            [1.0, 2, 3, 4, 5, 6, 7],  # label 6: first
            [1.0, 2, 3, 4, 5, 6, 7],  # label 0: last
            [0.0, 9, 1, 8, 2, 7, 3],  # label 3: second
        ]
    )
    labels = torch.tensor([4, 5, 6, 0, 3])
    batches = zip(torch.arange(5).split(batch_size), labels.split(batch_size), strict=True)
    advanced: list[int] = []
    found = evaluate({"x": lambda rows: logits[rows]}, batches, 7, advanced.append)
    assert found.shares() == {"x_top1": 1 / 5, "x_top5": 3 / 5, "agreement": None}
    assert found.accuracies["x"].by_class == (0, None, None, 0, 0, 0, 1)
    assert sum(advanced) == 5


@pytest.mark.parametrize(("classes", "measured"), [(5, False), (6, True)])
def test_top_5_needs_more_than_five_classes(classes: int, measured: bool) -> None:
    batches = [(torch.zeros(1), torch.tensor([4]))]
    found = evaluate({"x": lambda _: torch.arange(classes).float()[None]}, batches, classes)
    assert (found.accuracies["x"].top5 == 1.0) == measured
    assert (found.accuracies["x"].top5 is None) != measured


def test_classes_of_the_same_name_are_kept_apart() -> None:
    batches = [(torch.zeros(3), torch.tensor([0, 2, 2]))]
    found = evaluate({"x": lambda images: torch.tensor([[0.0, 0, 1]] * len(images))}, batches, 3)
    assert found.per_class(["crane", "bee", "crane"]) == {
        "crane (0)": {"images": 1, "x": 0.0},
        "bee": {"images": 0, "x": None},
        "crane (2)": {"images": 2, "x": 1.0},
    }


@pytest.mark.parametrize(
    ("teacher", "student", "warning"),
    [
        (80, 60, None),
        (80, 40, "the student is right on 40.0% of the test images, and a constant answer on 50.0%"),
        (30, 40, "the teacher is right on 30.0% of the test images"),
    ],
)
def test_networks_no_better_than_a_constant_answer_draw_a_warning(
    teacher: int, student: int, warning: str | None
) -> None:
    labels = torch.arange(100) % 2

    def network(right: int) -> Callable[[Tensor], Tensor]:
        return lambda _: torch.eye(2)[torch.where(torch.arange(100) < right, labels, 1 - labels)]

    batches = [(torch.zeros(100, 3, 2, 2, dtype=torch.uint8), labels)]
    found = evaluate({"teacher": network(teacher), "student": network(student)}, batches, 2).warning
    assert (found is None) == (warning is None)
    assert (found or "").startswith(warning or "")
    one_class = [(images, torch.zeros_like(labels)) for images, labels in batches]
    assert (
        evaluate({"teacher": lambda _: torch.eye(2)[torch.zeros(100).long()]}, one_class, 2).warning is None
    )


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate({"x": lambda images: images}, [], 3)


def test_full_range_of_uint8_reaches_the_network_as_zero_to_one(accelerator: Accelerator) -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.mean((2, 3))

    logits_of(
        classifier(Spy()),
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
    first, again = (logits_of(model, images, accelerator) for _ in range(2))
    assert torch.equal(first, again)  # no dropout
    assert torch.equal(model.network[1].running_mean, statistics)
    assert [module.training for module in model.modules()] == before


def test_puts_the_modes_back_after_an_error(accelerator: Accelerator) -> None:
    model = classifier(noisy_network()).train()
    with pytest.raises(RuntimeError):
        logits_of(model, torch.zeros(2, 3, 5, 5, dtype=torch.uint8), accelerator)
    assert all(module.training for module in model.modules())


def test_evaluation_is_in_float32_in_a_run_of_any_precision() -> None:
    accelerator = open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="bf16", threads=2)))
    dtypes = []
    model = classifier(noisy_network())
    model.network[5].register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    with accelerator.autocast():
        logits_of(model, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), accelerator)
    assert dtypes == [torch.float32]


@as_torch_rounds()
def test_convolutions_are_not_rounded_to_tf32(accelerator: Accelerator) -> None:
    before, seen = rounding(), []
    assert before[0] == "tf32", "torch's default"
    model = classifier(noisy_network())
    model.network[0].register_forward_hook(lambda *_: seen.append(rounding()))
    logits_of(model, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), accelerator)
    with pytest.raises(RuntimeError):
        logits_of(model, torch.zeros(2, 3, 5, 5, dtype=torch.uint8), accelerator)
    assert seen == [("ieee", "ieee")] * 2
    assert rounding() == before


def test_labels_of_another_number_are_refused(accelerator: Accelerator) -> None:
    model = classifier(BrightestChannel(0, 0, 0))
    with pytest.raises(ValueError, match="2 predictions against 1"):
        accuracy(model, images_whose_brightest_channel_is(0, 1), torch.tensor([0]), accelerator)
