"""What is read of a teacher: classes, channels, size, normalization and names; and what is not guessed."""

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models as zoo
from torch import Tensor, nn

from engine.config.classifier import ClassifierConfig
from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.models.loading import load_classifier
from engine.models.networks import wrn_16_1, wrn_40_2
from engine.models.reading import Reading, read, read_teacher
from engine.models.sources import stated

OPEN = ("num_classes", "in_channels", "image_size", "mean", "std")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Small(nn.Module):
    """A convolution, pooling and a linear layer."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(in_channels, 6, 3), nn.Linear(6, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).mean((2, 3)))


def takes_both(num_classes: int, in_channels: int) -> nn.Module:
    return Small(num_classes, in_channels)


def takes_none() -> nn.Module:
    return Small(4, 3)


def takes_few(num_classes: int) -> nn.Module:
    if num_classes not in (4, 8):
        raise ValueError("4 or 8 classes")
    return Small(num_classes, 3)


def off_the_meta_device(num_classes: int, in_channels: int) -> nn.Module:
    network = Small(num_classes, in_channels)
    network.scale = network.conv.weight.std().item()
    return network


class OwnHead(nn.Module):
    """A convolution, pooling and a head [features, classes] or [features * classes]."""

    def __init__(self, num_classes: int, *, is_flat: bool = False) -> None:
        super().__init__()
        self.conv, weight = nn.Conv2d(3, 6, 3), torch.randn(6, num_classes)
        self.weight = nn.Parameter(weight.flatten() if is_flat else weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3)) @ self.weight.view(6, -1)


def transposed(num_classes: int) -> nn.Module:
    return OwnHead(num_classes)


def flattened(num_classes: int) -> nn.Module:
    return OwnHead(num_classes, is_flat=True)


def with_background(num_classes: int) -> nn.Module:
    return Small(num_classes + 1, 3)


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))


def says_its_input(num_classes: int) -> nn.Module:
    network = Small(num_classes, 1)
    network.pretrained_cfg = {
        "input_size": (1, 28, 30),
        "mean": 0.3,
        "std": (0.2,),
        "label_names": ["cat", "dog", "bird"],
    }
    return network


def on_the_0_to_255_scale(num_classes: int) -> nn.Module:
    network = Small(num_classes, 3)
    network.pretrained_cfg = {"input_size": (3, 8, 8), "mean": [123.675] * 3, "std": [58.395] * 3}
    return network


def written(content: object, folder: Path) -> str:
    """Save a network's weights, or anything else, and return the file."""
    torch.save(content.state_dict() if isinstance(content, nn.Module) else content, folder / "w.pth")
    return str(folder / "w.pth")


def read_of(name: str, content: object, folder: Path, **known: Any) -> Reading:
    """Read a teacher of which nothing is known but its name and weights, and `known`."""
    return read_teacher(ClassifierConfig(name=name, weights=written(content, folder), **known))


def own(factory: Callable[..., nn.Module]) -> str:
    return f"{__name__}:{factory.__name__}"


def values(reading: Reading) -> tuple[Any, ...]:
    return tuple(getattr(reading.config, name) for name in OPEN)


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        (
            "timm:test_resnet",
            lambda: timm.create_model("test_resnet", num_classes=7),
            (7, 3, (160, 160), (0.5,) * 3, (0.5,) * 3),
        ),
        (
            "timm:test_vit",
            lambda: timm.create_model("test_vit", num_classes=7, in_chans=4),
            (7, 4, (160, 160), (0.5,) * 4, (0.5,) * 4),
        ),
        (
            "torchvision:squeezenet1_1",
            lambda: zoo.squeezenet1_1(num_classes=5),
            (5, 3, (224, 224), *IMAGENET),
        ),
        (own(says_its_input), lambda: says_its_input(3), (3, 1, (28, 30), (0.3,), (0.2,))),
    ],
    ids=["timm", "timm with channels", "torchvision", "factory"],
)
def test_everything_is_read(
    name: str, make: Callable[[], nn.Module], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    reading = read_of(name, make(), tmp_path)
    assert values(reading) == expected
    assert reading.origins.keys() >= set(OPEN)
    assert reading.origins["num_classes"] == reading.origins["in_channels"] == "its weights"
    assert load_classifier(reading.config).network.training is False


def test_names_of_classes_come_from_the_networks_own_configuration(tmp_path: Path) -> None:
    assert read_of(own(says_its_input), says_its_input(3), tmp_path).class_names == ("cat", "dog", "bird")
    assert read_of(own(says_its_input), says_its_input(2), tmp_path).class_names is None


def test_grey_weights_take_the_mean_over_the_colours(tmp_path: Path) -> None:
    network = timm.create_model("resnet18", num_classes=3, in_chans=1)
    reading = read_of("timm:resnet18", network, tmp_path)
    assert values(reading)[:3] == (3, 1, (224, 224))
    assert reading.config.mean == pytest.approx([sum(IMAGENET[0]) / 3])
    assert reading.config.std == pytest.approx([sum(IMAGENET[1]) / 3])


def test_what_the_recipe_says_wins(tmp_path: Path) -> None:
    known = {"image_size": 96, "mean": (0.1,), "std": (0.2,)}
    network = timm.create_model("test_vit", num_classes=7, img_size=96)
    reading = read_of("timm:test_vit", network, tmp_path, **known)
    assert values(reading) == (7, 3, 96, (0.1,), (0.2,))
    assert set(reading.origins) == {"num_classes", "in_channels"}
    load_classifier(reading.config)


def test_a_factory_without_arguments_is_asked_for_its_classes(tmp_path: Path) -> None:
    known = {"image_size": 8, "mean": (0.5,), "std": (0.5,)}
    reading = read_of(own(takes_none), takes_none(), tmp_path, **known)
    assert values(reading)[:2] == (4, 3)
    assert reading.origins == {"num_classes": "its output", "in_channels": "its weights"}


def test_classes_are_read_from_any_side_of_the_head(tmp_path: Path) -> None:
    known = {"image_size": 8, "mean": (0.5,), "std": (0.5,)}
    reading = read_of(own(transposed), transposed(9), tmp_path, **known)
    assert (reading.config.num_classes, reading.origins["num_classes"]) == (9, "its weights")


@pytest.mark.parametrize("factory", [flattened, with_background])
def test_classes_that_no_side_shows_are_not_those_of_the_trial(
    factory: Callable[..., nn.Module], tmp_path: Path
) -> None:
    known = {"image_size": 8, "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(UserError, match=r"^teacher\.num_classes cannot be read from .*'10', or") as raised:
        read_of(own(factory), factory(9), tmp_path, **known)
    assert "10" not in str(raised.value).replace("'10'", "")


def test_as_many_classes_as_the_first_layer_has_outputs(tmp_path: Path) -> None:
    known = {"num_classes": 6, "image_size": 8, "mean": (0.5,), "std": (0.5,)}
    assert values(read_of(own(takes_both), Small(6, 1), tmp_path, **known))[:2] == (6, 1)


@pytest.mark.parametrize("factory", [takes_both, off_the_meta_device])
def test_a_factory_is_built_for_what_its_weights_hold(
    factory: Callable[..., nn.Module], tmp_path: Path
) -> None:
    known = {"image_size": 8, "mean": (0.5,), "std": (0.5,)}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    reading = read_of(own(factory), Small(9, 2), tmp_path, **known)
    assert values(reading)[:2] == (9, 2)
    assert not torch.equal(torch.get_rng_state(), before), "Small(9, 2) draws its weights"
    torch.manual_seed(3)
    read_teacher(ClassifierConfig(name=own(factory), weights=str(tmp_path / "w.pth"), **known))
    assert torch.equal(torch.get_rng_state(), before), "reading leaves the generator alone"


def test_a_factory_that_refuses_the_trial_names_the_setting(tmp_path: Path) -> None:
    known = {"image_size": 8, "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(
        UserError, match=r"4 or 8 classes.* tried with 1009 classes: .* set teacher\.num_classes$"
    ):
        read_of(own(takes_few), Small(4, 3), tmp_path, **known)
    assert values(read_of(own(takes_few), Small(4, 3), tmp_path, num_classes=4, **known))[:2] == (4, 3)


def test_all_that_is_missing_is_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read_of(own(flat), flat(), tmp_path)
    message = str(raised.value)
    assert message.startswith(
        ", ".join(f"teacher.{name}" for name in OPEN) + f" cannot be read from {own(flat)}"
    )
    assert "--teacher.num_classes '10' --teacher.in_channels '3' --teacher.image_size '28'" in message
    assert "pretrained_cfg with input_size, mean and std" in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"^teacher\.image_size, teacher\.mean, teacher\.std cannot be read"):
        read_of(own(takes_both), Small(4, 3), tmp_path)
    with pytest.raises(
        UserError, match=r"^teacher\.std cannot be read from .* --teacher\.std '\[0\.5\]', or"
    ):
        read_of(own(takes_both), Small(4, 3), tmp_path, image_size=8, mean=(0.4,))


def test_of_a_network_of_a_library_no_attribute_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^teacher\.image_size, .* --teacher\.std '\[0\.5\]'$"):
        read_of("engine:wrn_16_1", wrn_16_1(4, 1), tmp_path)


def test_a_normalization_that_was_read_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.mean .* 0\.\.255 scale.* divide by 255"):
        read_of(own(on_the_0_to_255_scale), on_the_0_to_255_scale(4), tmp_path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"epoch": 3, "state_dict": {f"model.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {f"net._orig_mod.{key}": value for key, value in state.items()}},
        lambda state: {"model": state, "ema": {key: 2 * value for key, value in state.items()}},
    ],
    ids=["DataParallel", "Lightning", "compiled", "raw and EMA"],
)
def test_widths_are_read_through_wrappers(wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    known = {"image_size": 8, "mean": (0.5,), "std": (0.5,)}
    content = wrap(Small(9, 1).state_dict())
    assert values(read_of(own(takes_both), content, tmp_path, **known))[:2] == (9, 1)


def test_several_widths_in_a_file_need_a_key(tmp_path: Path) -> None:
    known = {"image_size": 8, "mean": (0.5,), "std": (0.5,)}
    content = {"old": Small(9, 1).state_dict(), "new": Small(5, 1).state_dict()}
    with pytest.raises(UserError, match=r"different numbers of classes: `old`, `new`; .*weights_key new"):
        read_of(own(takes_both), content, tmp_path, **known)
    reading = read_of(own(takes_both), content, tmp_path, weights_key="new", **known)
    assert values(reading)[:2] == (5, 1)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^teacher\.weights: '.*w\.pth' does not fit teacher\.name: `"):
        read_of("timm:test_resnet", Small(4, 3), tmp_path)
    with pytest.raises(UserError, match=r"^teacher\.weights is not set; give the "):
        read_teacher(ClassifierConfig(name="timm:test_resnet"))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("known", [{}, {"num_classes": 5, "in_channels": 3}], ids=["open", "known"])
def test_weights_with_auxiliary_heads_do_not_say_how_their_input_is_normalized(
    name: str, known: dict[str, int], tmp_path: Path, caplog
) -> None:
    """torchvision's fine-tuned inception_v3 keeps its heads, as one that was trained from scratch."""

    def warnings(content: dict[str, Tensor], **given: Any) -> list[str]:
        caplog.clear()
        read_of(f"torchvision:{name}", content, tmp_path, **known, **given)
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    with torch.device("meta"):
        state = zoo.get_model(name, num_classes=5, init_weights=False).state_dict()
    content = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
    (text,) = warnings(content)
    assert text.startswith("teacher.weights has auxiliary heads, so")
    assert text.endswith("give --teacher.mean '[0.5]' --teacher.std '[0.5]'")
    assert warnings(content, mean=(0.5,), std=(0.5,)) == []
    assert warnings({key: value for key, value in content.items() if not key.lower().startswith("aux")}) == []


def test_every_classifier_of_torchvision_says_its_input() -> None:
    for name in zoo.list_models(module=zoo):
        said = stated(ClassifierConfig(name=f"torchvision:{name}"), nn.Identity(), "teacher")
        assert said.in_channels == 3, name
        assert None not in (said.image_size, said.mean, said.std), name


def recipe_of(folder: Path, **fields: Any) -> Recipe:
    teacher = ClassifierConfig(
        name="engine:wrn_40_2", weights=written(wrn_40_2(4, 1), folder), image_size=8, mean=(0.4,), std=(0.3,)
    )
    return Recipe(**{"name": "open", "teacher": teacher, **fields})


def test_a_whole_recipe_is_read(tmp_path: Path) -> None:
    recipe = read(recipe_of(tmp_path))
    assert recipe.is_read
    assert recipe.class_names == ("0", "1", "2", "3")
    assert recipe.student.name == "engine:wrn_16_1"
    assert [getattr(recipe.student, name) for name in OPEN] == [4, 1, 8, (0.4,), (0.3,)]
    assert read(recipe) == recipe


def test_a_student_and_names_in_the_recipe_win(tmp_path: Path) -> None:
    student = ClassifierConfig(name="engine:lenet_5")
    recipe = read(recipe_of(tmp_path, student=student, class_names=("a", "b", "c", "d")))
    assert recipe.class_names == ("a", "b", "c", "d")
    assert recipe.student.name == "engine:lenet_5"


def test_names_that_do_not_match_the_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.num_classes is 4, but class_names has 3"):
        read(recipe_of(tmp_path, class_names=("a", "b", "c")))


def test_colours_in_the_recipe_suit_a_teacher_that_turns_out_grey(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    open_one = replace(recipe, teacher=replace(recipe.teacher, mean=IMAGENET[0], std=IMAGENET[1]))
    found = read(open_one)
    assert found.teacher.in_channels == found.student.in_channels == 1
    assert found.student.mean == found.teacher.mean == pytest.approx([sum(IMAGENET[0]) / 3])


def test_a_resolved_recipe_reads_nothing() -> None:
    code = (
        "import sys\n"
        "from engine.cli.resolve import read_networks\n"
        "from engine.recipes.load import load_recipe\n"
        "recipe = load_recipe('fashion-mnist', {'teacher.weights': 'no such file'})\n"
        "assert recipe.is_read and read_networks(recipe) is recipe\n"
        "print(*({'torch', 'timm', 'torchvision', 'transformers'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
