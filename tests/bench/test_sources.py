"""The judging of sources: figures against loops, the judge's training, and the pictures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from bench.sources import imagenet, methods
from bench.sources.judge import Judge
from engine.config.methods import Name
from engine.recipes.load import load_recipe


@pytest.mark.parametrize("name", ["dda", "cmi"])
def test_the_figures_of_a_method(name: Name) -> None:
    """One batch on the embedded teacher, judged by an untrained judge."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    torch.manual_seed(0)
    (row,) = methods.measure([name], [3], 0.0, Judge(), accelerator, steps=1)
    assert (row.method, row.seed, row.images) == (name, 3, 128)
    assert row.images_per_minute == pytest.approx(60 * 128 / row.seconds)
    assert 0 < row.distance < 2
    assert 0 < row.distance_in_class < 2
    assert all(0 <= share <= 1 for share in (row.teacher, row.judge, row.clip))


def test_a_method_takes_the_steps_that_fit() -> None:
    accelerator, recipe = Accelerator(cpu=True, mixed_precision="no"), load_recipe("prior-free")
    recipe = replace(recipe, synthesize=replace(recipe.synthesize, batch_size=4, steps=7))
    assert methods._fitting(recipe, 0.0, accelerator).chosen.steps == 1
    assert methods._fitting(recipe, 1e6, accelerator) == recipe.synthesize


def test_distances_within_classes_leave_single_images_out() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(5, 3), dim=1)
    labels = torch.tensor([0, 0, 1, 1, 2])
    expected = sum(1 - embeddings[i] @ embeddings[i + 1] for i in (0, 2)) / 2
    assert methods._within_classes(embeddings, labels) == pytest.approx(float(expected), abs=1e-6)


def test_the_judge_looks_at_the_first_channel_of_uint8_images() -> None:
    torch.manual_seed(0)
    judge, images = Judge().eval(), torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expected = judge(images[:, :1].float() / 255).argmax(1)
    assert torch.equal(judge.classes(images), expected)


def test_a_picture_has_eight_images_in_a_row(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    imagenet._save(images, tmp_path / "new" / "images.png")
    with Image.open(tmp_path / "new" / "images.png") as picture:
        assert picture.size == (32, 8)
