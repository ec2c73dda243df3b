"""The proposed student: of the teacher's family if one is in range, else a common network that runs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.models.loading import build_classifier
from engine.models.proposal import CHEAPEST, DEAREST, cost, propose_student
from tests.classifiers import classifier_config


class Strange(nn.Module):
    """A network that takes images of any size, but does not run without values."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv(images)
        if h.sum().item() == 1.5:
            raise ValueError
        return self.fc(h.mean((2, 3)))


def strange(num_classes: int, in_channels: int) -> nn.Module:
    return Strange(num_classes, in_channels)


def test_the_cost_is_that_of_convolutions_and_matrix_products() -> None:
    counted = cost(classifier_config(name=f"{__name__}:strange", in_channels=2, image_size=(5, 7)))
    assert counted == 5 * 7 * 8 * 2 * 9 + 8 * 10
    small, large = (
        cost(classifier_config(name="engine:wrn_16_1", image_size=size)) for size in ((16, 16), (32, 64))
    )
    assert large == pytest.approx(8 * small, rel=0.01)


def test_counting_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    propose_student(classifier_config(name=f"{__name__}:strange"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ({"name": "timm:resnet152", "image_size": 64}, "timm:resnet18"),
        ({"name": "timm:resnet152.a1_in1k", "image_size": 64}, "timm:resnet18"),
        ({"name": "torchvision:resnet152", "image_size": (64, 80)}, "torchvision:resnet18"),
    ],
)
def test_a_member_of_the_family_in_range_is_proposed(teacher: dict[str, Any], student: str) -> None:
    config = classifier_config(**teacher)
    found = propose_student(config)
    assert found.name == student
    assert CHEAPEST <= found.cost / cost(config) <= DEAREST
    assert found.cost == cost(classifier_config(**{**teacher, "name": student}))
    assert "of the same family" in found.reason
    assert f"1/{cost(config) / found.cost:.1f} of the teacher's" in found.reason


def test_without_one_a_common_network_in_range_is_proposed() -> None:
    config = classifier_config(name="engine:vgg_11_bn")
    found = propose_student(config)
    assert found.name.startswith("engine:wrn")
    assert CHEAPEST <= found.cost / cost(config) <= DEAREST
    assert "a common network" in found.reason


def test_large_images_get_a_network_for_large_images() -> None:
    config = classifier_config(name="timm:resnet34", image_size=128)
    found = propose_student(config)
    assert found.name.startswith("timm:")
    assert CHEAPEST <= found.cost / cost(config) <= DEAREST


def test_a_teacher_of_middle_sized_images_gets_a_cheaper_student() -> None:
    config = classifier_config(name="timm:resnet10t", image_size=64)
    found = propose_student(config)
    assert found.name == "timm:regnetx_002"
    assert CHEAPEST <= found.cost / cost(config) <= DEAREST


def test_without_any_in_range_the_nearest_cheaper_one_or_the_cheapest() -> None:
    assert propose_student(classifier_config(name="engine:wrn_40_2")).name == "engine:wrn_16_1"
    tiny = propose_student(classifier_config(name=f"{__name__}:strange"))
    assert tiny.name == "engine:wrn_16_1"
    assert "times the teacher's; a smaller one needs --student.name" in tiny.reason


@pytest.mark.parametrize("size", [1, 5, (3, 96), (17, 50), (97, 5), (1, 150)])
@pytest.mark.parametrize("in_channels", [1, 4])
def test_a_student_is_found_and_trains_at_odd_sizes(size: int | tuple[int, int], in_channels: int) -> None:
    given = {"image_size": size, "in_channels": in_channels, "num_classes": 3}
    found = propose_student(classifier_config(name=f"{__name__}:strange", **given))
    build_classifier(classifier_config(name=found.name, **given), "student")


def test_a_teacher_that_cannot_run_on_its_images_is_named() -> None:
    with pytest.raises(UserError, match=r"^teacher\.image_size is 28x28, but engine:lenet_5 cannot run on a"):
        propose_student(classifier_config(name="engine:lenet_5", image_size=28))
