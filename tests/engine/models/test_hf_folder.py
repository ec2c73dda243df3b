"""Hugging Face's folders as teachers: their input, names and weights, against the library itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from engine.config.classifier import ClassifierConfig
from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.models.loading import build_classifier, load_classifier
from engine.models.reading import Reading, read, read_teacher

SIDE = 16
NAMES = {0: "cat", 1: "dog", 2: "bird"}
COLOUR = (60, 120, 250)


def small(**changes: Any) -> dict[str, Any]:
    """Return the settings of a small transformer."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return {**sizes, "image_size": SIDE, "patch_size": 8, "id2label": NAMES, **changes}


def vit(**changes: Any) -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**small(**changes)))


def dinov2(**changes: Any) -> nn.Module:
    return transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**small(**changes)))


def resnet(**changes: Any) -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], **{"id2label": NAMES, **changes}
    )
    return transformers.ResNetForImageClassification(config)


def convnext(**changes: Any) -> nn.Module:
    config = transformers.ConvNextConfig(
        num_stages=2, hidden_sizes=[8, 8], depths=[1, 1], **{"id2label": NAMES, **changes}
    )
    return transformers.ConvNextForImageClassification(config)


def written(folder: Path, network: nn.Module, processor: Any = None, **options: Any) -> str:
    """Save a model that tells images apart, and its processor; return its name in a recipe."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(folder, **options)
    if processor is None:
        processor = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(folder)
    return f"hf:{folder}"


def read_of(name: str, **known: Any) -> Reading:
    return read_teacher(ClassifierConfig(name=name, **known))


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


@pytest.mark.parametrize("make", [vit, resnet, convnext])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_a_folder_says_everything(make: Callable[..., nn.Module], in_channels: int, tmp_path: Path) -> None:
    network = make(num_channels=in_channels).eval()
    reading = read_of(written(tmp_path, network))
    config = reading.config
    assert (config.num_classes, config.in_channels, config.size) == (3, in_channels, (SIDE, SIDE))
    assert reading.class_names == ("cat", "dog", "bird")
    classifier = load_classifier(config)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = network(classifier.adapted(images)).logits
        torch.testing.assert_close(classifier(images), expected)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "vit": lambda: transformers.ViTImageProcessor(size={"height": SIDE, "width": 24}),
    "rescaled to 0..2": lambda: transformers.ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, rescale_factor=1 / 127.5
    ),
    "not rescaled": lambda: transformers.ViTImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_rescale=False,
        image_mean=[127.5, 100, 90],
        image_std=[64] * 3,
    ),
    "not normalized": lambda: transformers.ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_normalize=False
    ),
    "cropped": lambda: transformers.BitImageProcessor(
        size={"shortest_edge": 20}, crop_size={"height": SIDE, "width": SIDE}
    ),
    "not cropped": lambda: transformers.BeitImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, crop_size={"height": 12, "width": 12}
    ),
    "shortest edge": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIDE}),
    "normalized twice": lambda: transformers.EfficientNetImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_std=[0.4, 0.5, 0.6], include_top=True
    ),
    "rescaled to -1..1": lambda: transformers.EfficientNetImageProcessor(
        size={"height": SIDE, "width": SIDE},
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        include_top=False,
    ),
}


@pytest.mark.parametrize("make", PROCESSORS.values(), ids=PROCESSORS)
def test_the_input_is_what_the_library_makes_of_an_image(make: Callable[[], Any], tmp_path: Path) -> None:
    """An image of one colour, which no resizing changes."""
    processor = make()
    name = written(tmp_path, resnet(), processor)
    config = read_of(name).config
    image = np.full((40, 40, 3), COLOUR, np.uint8)
    wanted = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"]))
    ours = load_classifier(config).adapted(
        torch.tensor(COLOUR).view(1, 3, 1, 1).expand(1, 3, *config.size) / 255
    )
    torch.testing.assert_close(ours, wanted.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [20, [20, 24], {"height": 20, "width": 24}, {"shortest_edge": 20}])
def test_sizes_as_older_versions_wrote_them(size: Any, tmp_path: Path) -> None:
    name = written(tmp_path, resnet())
    edit(tmp_path / "preprocessor_config.json", size=size)
    assert read_of(name).config.size == (20, 20 if size in (20, {"shortest_edge": 20}) else 24)


def test_without_a_size_in_the_processor_the_networks_own_counts(tmp_path: Path) -> None:
    name = written(tmp_path, vit())
    edit(tmp_path / "preprocessor_config.json", size=None)
    assert read_of(name).config.size == (SIDE, SIDE)


@pytest.mark.parametrize("size", [None, 24])
def test_a_network_that_resizes_its_positions_takes_other_images(size: int | None, tmp_path: Path) -> None:
    """The processor's are smaller than its positions; DINOv2 was published with 224 and 518."""
    network = dinov2(image_size=32).eval()
    config = read_of(written(tmp_path, network), image_size=size).config
    assert config.size == (size or SIDE, size or SIDE)
    classifier = load_classifier(config)
    images = torch.rand(2, 3, *config.size)
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), network(classifier.adapted(images)).logits)


def test_a_network_that_does_not_resize_them_says_so(tmp_path: Path) -> None:
    config = read_of(written(tmp_path, vit(image_size=32))).config
    with pytest.raises(UserError, match=r"^teacher\.image_size is 16x16, but hf:.* cannot run on a 16x16"):
        load_classifier(config)


@pytest.mark.parametrize("make", [vit, dinov2])
def test_a_student_of_another_size_is_loaded_as_it_was_built(
    make: Callable[..., nn.Module], tmp_path: Path
) -> None:
    known = {"num_classes": 3, "in_channels": 3, "image_size": 24, "mean": (0.5,), "std": (0.5,)}
    config = ClassifierConfig(name=written(tmp_path, make()), **known)
    student = build_classifier(config, "student").eval()
    torch.save(student.network.state_dict(), tmp_path / "student.pth")
    loaded = load_classifier(replace(config, weights=str(tmp_path / "student.pth")), "student")
    for key, value in student.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[key], value)


def test_without_a_processor_the_normalization_is_missing(tmp_path: Path) -> None:
    name = written(tmp_path, vit())
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(
        UserError, match=r"^teacher\.mean, teacher\.std cannot .* add the preprocessor_config\."
    ):
        read_of(name)
    assert read_of(name, mean=(0.5,), std=(0.5,)).config.size == (SIDE, SIDE)


@pytest.mark.parametrize("classes", [2, 3])
def test_placeholders_are_no_names(classes: int, tmp_path: Path) -> None:
    reading = read_of(written(tmp_path, vit(id2label={k: f"LABEL_{k}" for k in range(classes)})))
    assert (reading.config.num_classes, reading.class_names) == (classes, None)


@pytest.mark.parametrize("form", ["sharded", "bin", "sharded bin"])
def test_every_form_of_the_weights_is_found(form: str, tmp_path: Path) -> None:
    network = vit().eval()
    sharded = {"max_shard_size": "4KB"} if form == "sharded" else {}
    name = written(tmp_path, network, **sharded)
    state = network.state_dict()
    if "bin" in form:
        (tmp_path / "model.safetensors").unlink()
    if form == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    if form == "sharded bin":
        parts = {"a.bin": list(state)[::2], "b.bin": list(state)[1::2]}
        for file, keys in parts.items():
            torch.save({key: state[key] for key in keys}, tmp_path / file)
        index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1 or form != "sharded"
    config = read_of(name).config
    classifier = load_classifier(config)
    for key, value in state.items():
        torch.testing.assert_close(classifier.network.state_dict()[key], value)


def test_a_recipe_that_leaves_only_the_weights_open_gets_them(tmp_path: Path) -> None:
    config = replace(read_of(written(tmp_path, vit())).config, weights=None)
    student = ClassifierConfig(name="engine:wrn_16_1")
    recipe = Recipe(name="open", teacher=config, student=student, class_names=("a", "b", "c"))
    assert not recipe.is_read
    found = read(recipe)
    assert (found.is_read, found.class_names) == (True, ("a", "b", "c"))
    assert load_classifier(found.teacher).num_classes == 3
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^teacher\.weights is not set; give the "):
        read(recipe)


def test_names_of_earlier_versions_are_known_in_checkpoints_too(tmp_path: Path) -> None:
    network = vit()
    name = written(tmp_path, network)
    published = load_file(tmp_path / "model.safetensors")
    assert published.keys() != network.state_dict().keys(), "transformers has not renamed any module of ViT"
    content = {"epoch": 1, "state_dict": {f"model.{key}": value for key, value in published.items()}}
    torch.save(content, tmp_path / "last.ckpt")
    classifier = load_classifier(read_of(name, weights=str(tmp_path / "last.ckpt")).config)
    for key, value in network.state_dict().items():
        assert torch.equal(classifier.network.state_dict()[key], value)


def test_weights_in_the_recipe_win(tmp_path: Path) -> None:
    name = written(tmp_path, vit())
    other = {key: 2 * value for key, value in vit().state_dict().items()}
    torch.save(other, tmp_path / "own.pth")
    config = read_of(name, weights=str(tmp_path / "own.pth")).config
    assert config.weights == str(tmp_path / "own.pth")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "config.json",
            {"problem_type": "multi_label_classification"},
            r"is a multi-label classifier .*single",
        ),
        ("preprocessor_config.json", {"do_flip_channel_order": True}, r"turns RGB into BGR.*write a factory"),
        ("config.json", {"model_type": "no-such-model"}, r"cannot be built.*no-such-model"),
    ],
)
def test_what_cannot_be_used_is_refused(
    file: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    name = written(tmp_path, vit())
    edit(tmp_path / file, **changes)
    with pytest.raises(UserError, match=rf"^teacher\.name: .*{message}") as raised:
        read_of(name)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^teacher\.name: '.*' has no config\.json; give a folder that save_p"
    ):
        read_of(f"hf:{tmp_path}")
    name = written(tmp_path, vit())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read \(.*\); fetch it again$"):
        read_of(name)


def test_a_student_of_the_same_kind_has_the_recipes_classes_and_size(tmp_path: Path) -> None:
    name = written(tmp_path, vit())
    wanted = ClassifierConfig(
        name=name, num_classes=5, in_channels=1, image_size=(24, 32), mean=(0.5,), std=(0.5,)
    )
    classifier = build_classifier(wanted, "student").eval()
    assert classifier(torch.rand(2, 3, 24, 32)).shape == (2, 5)
