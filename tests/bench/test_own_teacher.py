"""The benchmarks with a teacher of one's own: what they draw, how they split it, and how they train."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFont
from torch import Tensor, nn

from bench.own_teacher import batches, emoji, glyphs, image_folder, training
from bench.own_teacher.__main__ import command
from bench.own_teacher.faces import Face, faces, split, weights
from engine.config.classifier import ClassifierConfig
from engine.errors import UserError
from engine.models.loading import load_classifier
from engine.models.reading import read_teacher

CNN = "bench.own_teacher.glyph_cnn:glyph_cnn"


def font(family: str, units_per_em: int) -> bytes:
    """Return Pillow's font under another name of seven letters, drawn smaller the more units its em has."""
    data = bytearray(ImageFont.load_default(20).font_bytes)
    for index in range(struct.unpack(">H", data[4:6])[0]):
        tag, _, start, _ = struct.unpack(">4sIII", data[12 + 16 * index : 28 + 16 * index])
        if tag == b"head":
            data[start + 18 : start + 20] = struct.pack(">H", units_per_em)
    names = bytes(data)
    for encoding in ("ascii", "utf-16-be"):
        names = names.replace("Aileron".encode(encoding), family.encode(encoding))
    return names


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ten packages: families Family0 to Family9, two faces each, and a copy of a face of the one before."""
    root = tmp_path_factory.mktemp("fonts")
    for index in range(10):
        folder = root / f"fonts-{index}"
        folder.mkdir()
        for face in range(2):
            units = 1000 + 40 * index + 20 * face
            (folder / f"face{face}.ttf").write_bytes(font(f"Family{index}", units))
        (folder / "z.ttf").write_bytes(font(f"Copied{index}", 1000 + 40 * max(index - 1, 0)))
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def found(packages: dict[str, Path]) -> list[Face]:
    return faces(packages)


def test_a_face_that_draws_the_same_or_lacks_a_letter_is_left_out(
    packages: dict[str, Path], found: list[Face]
) -> None:
    assert [face.family for face in found] == [f"Family{index}" for index in range(10) for _ in range(2)]
    assert faces(packages, "ab\u0915") == []


def test_the_splits_share_no_font_family_or_package(found: list[Face]) -> None:
    seen = set()
    for seed in range(5):
        train, test = split(found, seed)
        for name in ("package", "family", "file", "sha256"):
            assert not {getattr(face, name) for face in train} & {getattr(face, name) for face in test}
        assert len(train) + len(test) == len(found)
        assert len({face.package for face in test}) == 2
        seen.add(frozenset(face.package for face in test))
    assert len(seen) > 1
    assert split(found, 0)[1] == split(found, 0)[1]


def test_a_family_of_both_splits_is_for_training_alone(found: list[Face]) -> None:
    _, test = split(found, 0)
    one_family = [replace(face, family="Common") if face in test[:1] else face for face in found]
    train_face = next(face for face in found if face not in test)
    one_family = [replace(face, family="Common") if face is train_face else face for face in one_family]
    train, test_now = split(one_family, 0)
    assert [face.file for face in test_now] == [face.file for face in test[1:]]
    assert "Common" in {face.family for face in train}
    with pytest.raises(UserError, match="2 usable font faces in 1 packages are too few"):
        split(found[:2], 0)


def test_families_are_equally_likely(found: list[Face]) -> None:
    odd = weights(found[:3])
    assert odd == pytest.approx([0.25, 0.25, 0.5])


def test_images_depend_on_seed_and_split_alone(found: list[Face]) -> None:
    def drawn(count: int, name: str, seed: int) -> list[tuple[str, bytes]]:
        return [(glyph, image.tobytes()) for glyph, image in glyphs.images(found, count, name, seed)]

    images = drawn(20, "train", 0)
    assert drawn(30, "train", 0)[:20] == images
    assert [glyph for glyph, _ in images] == 2 * list("abdegknpqs")
    for other in (drawn(20, "test", 0), drawn(20, "train", 1)):
        assert not {image for _, image in images} & {image for _, image in other}


def test_a_glyph_is_light_on_dark_and_inside_the_image(found: list[Face]) -> None:
    for index in range(50):
        image = glyphs.render(found[0].masks["a"], np.random.default_rng(index)).astype(float)
        assert image.shape == (28, 28)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert np.percentile(image, 98) > border.mean() + 2 * border.std()


def pictures(cache: Path, vendor: str, colour: tuple[int, int, int, int]) -> None:
    """Write a package of three emoji, one of them without a picture and one a skin tone."""
    folder = cache / f"emoji-datasource-{vendor}-{emoji.VERSION}"
    (folder / "img" / vendor / "64").mkdir(parents=True)
    listed = [
        {"category": category, "unified": name, "image": f"{name}.png", f"has_img_{vendor}": has}
        for category, name, has in (
            ("Food & Drink", "1F34E", True),
            ("Food & Drink", "1F34F", False),
            ("Component", "1F3FB", True),
        )
    ]
    (folder / "emoji.json").write_text(json.dumps(listed), encoding="utf-8")
    image = Image.new("RGBA", (64, 64), colour)
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(folder / "img" / vendor / "64" / "1F34E.png")


def test_one_vendor_is_held_out_and_emoji_lie_on_white(tmp_path: Path) -> None:
    for index, vendor in enumerate(emoji.VENDORS):
        pictures(tmp_path / "cache", vendor, (index, 10, 20, 255))
    list(emoji.make(tmp_path / "out", tmp_path / "cache", held_out="apple"))
    train, test = (image_folder.read(tmp_path / "out", name) for name in ("train", "test"))
    assert train.classes == test.classes == ("food-drink",)
    assert train.pixels[:, 0, 5, 5].sort().values.tolist() == [0, 1, 2]
    assert test.pixels[:, :, 5, 5].tolist() == [[3, 10, 20]]
    assert test.pixels[0, :, 0, 0].tolist() == [255, 255, 255]
    with pytest.raises(UserError, match="--held-out has 'samsung'; choose from google, twitter"):
        list(emoji.make(tmp_path / "other", tmp_path / "cache", held_out="samsung"))
    with pytest.raises(UserError, match="train exists"):
        list(emoji.make(tmp_path / "out", tmp_path / "cache", held_out="apple"))


def linear_training(partial: Path, steps: int, batch: training.Batches | None = None) -> training.Training:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def random_batch(step: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(step)
        return torch.rand(8, 1, 4, 4, generator=rng), torch.randint(0, 3, (8,), generator=rng)

    return training.Training(
        model=training.Normalized(network, (0.5,), (0.5,)),
        batches=batch or random_batch,
        steps=steps,
        seconds=None,
        steps_per_epoch=5,
        temperature=4.0,
        bf16=False,
        partial=partial,
        settings={"batch": 8},
    )


def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    whole = linear_training(tmp_path / "whole.partial", 10)
    whole.run()

    stopped = linear_training(tmp_path / "cut.partial", 10)
    give = stopped.batches

    def stop_at_7(step: int) -> tuple[Tensor, Tensor]:
        if step == 7:
            raise KeyboardInterrupt
        return give(step)

    stopped.batches = stop_at_7
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    steps: list[int] = []

    def counted(step: int) -> tuple[Tensor, Tensor]:
        steps.append(step)
        return give(step)

    resumed = linear_training(tmp_path / "cut.partial", 10, counted)
    resumed.run()
    assert steps == [7, 8, 9]
    for name, value in whole.state()["model"].items():
        torch.testing.assert_close(resumed.state()["model"][name], value, rtol=0, atol=0)
    assert resumed.state()["epoch"] == 2

    other = linear_training(tmp_path / "cut.partial", 10)
    other.settings = {"batch": 16}
    with pytest.raises(UserError, match="cut.partial was written with other settings; delete it"):
        other.run()


def test_a_training_by_seconds_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))  # every look at the clock is a second later
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(now)))
    run = linear_training(tmp_path / "partial", 1)
    run.steps, run.seconds = None, 6.0
    run.run()
    assert (run.step, run.spent) == (6, 6.0)


def test_the_loss_is_the_published_one() -> None:
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64).requires_grad_()
    p, q = F.softmax(teacher / 4, 1), F.softmax(student / 4, 1)
    expected = 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(training.distillation(student, teacher, 4.0), expected)


@pytest.mark.parametrize("kind", ["uniform", "smooth", "both"])
def test_noise_is_new_each_step_and_labelled_by_the_teacher(kind: str) -> None:
    teacher = training.Normalized(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), (0.5,), (0.5,))
    give = batches.noise(kind, (6, 1, 8, 8), teacher, seed=0, bf16=False)
    images, logits = give(0)
    assert 0 <= images.min() < images.max() <= 1
    torch.testing.assert_close(logits, teacher(images))
    assert torch.equal(give(0)[0], images)
    assert not torch.equal(give(1)[0], images)
    neighbours = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3)) / images.std((1, 2, 3))
    assert (neighbours[::2].mean() < 0.9 * neighbours[1::2].mean()) == (kind == "both")


def test_views_keep_the_range_and_move_the_image_on_white() -> None:
    images = torch.ones(64, 3, 16, 16)
    images[..., 4:8, 2:6] = torch.rand(64, 3, 4, 4)
    seen = batches.views(images, torch.Generator().manual_seed(0))
    assert 0 <= seen.min() < seen.max() == 1
    ink = (1 - seen).sum((1, 2))
    on_the_left = ink[:, :8].sum(1) > ink[:, 8:].sum(1)
    assert 16 < int(on_the_left.sum()) < 48
    torch.testing.assert_close(
        batches.views(torch.ones(2, 3, 8, 8), torch.Generator()), torch.ones(2, 3, 8, 8)
    )


@pytest.fixture
def data(tmp_path: Path, found: list[Face]) -> Path:
    for name in image_folder.SPLITS:
        drawn = enumerate(glyphs.images(found, 40, name, 0))
        named = ((glyph, str(index), image) for index, (glyph, image) in drawn)
        image_folder.write(tmp_path / "data", name, named, {})
    return tmp_path / "data"


def test_the_commands_train_a_teacher_and_distill_it_on_noise(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(data), "--steps", "2", "--batch", "8", "--threads", "1"]
    weights_file, student = tmp_path / "w.pth", tmp_path / "student.pth"
    command(["train", *common, "--network", CNN, "--out", str(weights_file)])
    checkpoint = torch.load(weights_file, weights_only=True)
    assert sorted(checkpoint) == ["epoch", "model", "optimizer"]
    load_classifier(read_teacher(ClassifierConfig(name=CNN, weights=str(weights_file))).config, "teacher")
    teacher = ["--teacher", CNN, "--weights", str(weights_file)]
    command(["noise", *common, *teacher, "--network", "engine:wrn_16_1", "--out", str(student)])
    result = json.loads(student.with_suffix(".json").read_text(encoding="utf-8"))
    assert result["steps"] == 2
    assert f"{student}: test {result['test_top1']:.4f}" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.partial"))


def refused(arguments: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        command(arguments)
    return str(caught.value)


def test_what_cannot_be_done_is_refused_in_words(data: Path, tmp_path: Path) -> None:
    def train(root: Path, *more: str) -> list[str]:
        return ["train", "--data", str(root), "--network", CNN, "--out", str(tmp_path / "x.pth"), *more]

    assert "no images in" in refused(train(tmp_path, "--steps", "1"))
    assert "give one of --epochs, --steps and --seconds" in refused(train(data))
    assert "give one of --epochs, --steps and --seconds" in refused(
        train(data, "--steps", "1", "--epochs", "1")
    )
    assert "--batch is 41; use 2 to 40" in refused(train(data, "--steps", "1", "--batch", "41"))
    assert "--augment is for RGB images" in refused(train(data, "--steps", "1", "--augment"))
