"""New views of a batch, and the teacher's outputs on stored ones, in pieces of any size."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config.views import StoredViews
from engine.errors import NonFiniteError
from engine.feed.feed import FeedBatch
from engine.runtime.micro_batch import MicroBatch
from engine.stages.views import mixed, pasted, teacher_outputs, view_images, warped
from tests.engine.stages.test_distill import batches, distiller, same, train, weights
from tests.engine.stages.test_distill import teacher as teacher_network

__all__ = ["batches"]
CPU = torch.device("cpu")
CONFIG = StoredViews(count=3, mixup=0.4, seed=5, crop_padding=2)
KEYS = np.arange(7) * 13
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)


def teacher(images: Tensor) -> dict[str, Tensor]:
    return {"logits": images.mean((2, 3)), "map": images[:, :2, ::2, ::2]}


def outputs(micro_batch: int, **options: Any) -> Any:
    return teacher_outputs(IMAGES, KEYS, CONFIG, teacher, MicroBatch("filter", micro_batch), CPU, **options)


def test_outputs_are_the_teachers_on_each_view_of_each_image() -> None:
    found = outputs(64, pooled="map")
    assert found.logits.shape == (7, 3, 3)
    assert found.logits.dtype == np.float16
    for row in range(7):
        for view in range(3):
            one = view_images(torch.from_numpy(IMAGES), KEYS, np.array([row]), np.array([view]), CONFIG, CPU)
            expected = teacher(one)
            np.testing.assert_allclose(found.logits[row, view], expected["logits"][0], atol=1e-3)
            np.testing.assert_allclose(found.pooled[row, view], expected["map"][0].mean((1, 2)), atol=1e-3)


def test_with_teacher_flip_outputs_are_means_over_mirror_images() -> None:
    def lopsided(images: Tensor) -> dict[str, Tensor]:
        """Return outputs that differ between an image and its mirror image."""
        weighed = images * torch.arange(8.0)
        return {"logits": weighed.mean((2, 3)), "map": weighed}

    config, batch = replace(CONFIG, teacher_flip=True), MicroBatch("filter", 4)
    found = teacher_outputs(IMAGES, KEYS, config, lopsided, batch, CPU, pooled="map")
    rows, views = np.divmod(np.arange(21), 3)
    images = view_images(torch.from_numpy(IMAGES), KEYS, rows, views, CONFIG, CPU).double()
    expected = images.mean((2, 3)).unflatten(0, (7, 3)) * 3.5
    for half in (found.logits, found.pooled):
        np.testing.assert_allclose(half, expected, rtol=2e-3)


def test_a_mixed_view_lies_between_the_views_of_two_images() -> None:
    plain = StoredViews(count=3, mixup=0.0, seed=5, crop_padding=2)
    rows, views = np.divmod(np.arange(21), 3)
    pixels = torch.from_numpy(IMAGES)
    alone = view_images(pixels, KEYS, rows, views, plain, CPU)
    together = view_images(pixels, KEYS, rows, views, CONFIG, CPU)
    same = (alone - together).abs().amax((1, 2, 3)) == 0
    assert same.view(7, 3).tolist() == [[True, True, False]] * 7
    for row in range(7):
        others = alone.view(7, 3, *alone.shape[1:])[:, 2]
        mixed, own = together.view_as(alone).view(7, 3, *alone.shape[1:])[row, 2], others[row]
        fits = [
            other
            for other in range(7)
            if other != row
            and np.linalg.lstsq(
                torch.stack([own.flatten(), others[other].flatten()], 1).double().numpy(),
                mixed.flatten().double().numpy(),
            )[1].max(initial=0)
            < 1e-6
        ]
        assert len(fits) == 1


@pytest.mark.parametrize("micro_batch", [1, 4, 20, 21])
def test_pieces_of_any_size_give_the_same(micro_batch: int) -> None:
    done: list[int] = []
    found = outputs(micro_batch, advance=done.append)
    assert sum(done) == 21
    np.testing.assert_array_equal(found.logits, outputs(64).logits)
    assert found.pooled is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e5])
def test_an_output_that_float16_cannot_hold_is_an_error(value: float) -> None:
    def bad(images: Tensor) -> dict[str, Tensor]:
        return {"logits": torch.full((len(images), 3), value)}

    with pytest.raises(NonFiniteError, match=r"distill\.views 0"):
        teacher_outputs(IMAGES, KEYS, CONFIG, bad, MicroBatch("filter", 8), CPU)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_mixup_mixes_a_share_of_the_images_with_their_neighbours() -> None:
    images = torch.rand(8, 1, 2, 2, dtype=torch.float64)
    out = mixed(images, 0.5, rng())
    weight = torch.rand(4, generator=rng()).double()
    for row in range(4):
        expected = weight[row] * images[row] + (1 - weight[row]) * images[row - 1]
        torch.testing.assert_close(out[row], expected)
    assert torch.equal(out[4:], images[4:])


def test_cutmix_pastes_a_rectangle_of_the_last_images_into_their_neighbours() -> None:
    images = torch.arange(200.0).view(200, 1, 1, 1).expand(200, 2, 12, 8).contiguous()
    out = pasted(images, 0.75, rng())
    assert torch.equal(out[:50], images[:50])
    areas = []
    for row in range(50, 200):
        assert torch.equal(out[row, 0], out[row, 1])
        own = out[row, 0] == row
        assert (out[row, 0][~own] == row - 1).all()
        rows, columns = own.any(1).nonzero(), own.any(0).nonzero()
        areas.append(own.float().mean().item())
        if len(rows):
            box = own[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all()
    assert 0.25 < sum(areas) / len(areas) < 0.5, "rounded down to whole pixels"
    assert max(areas) > 0.7


def test_warp_stretches_turns_and_shifts_each_image_by_itself() -> None:
    """The centre of mass of a square moves, its area grows and shrinks, and what was outside is black."""
    images = torch.zeros(300, 3, 32, 32)
    images[:, :, 10:22, 10:22] = 1
    out = warped(images, 0.4, rng())
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.shape == images.shape
    assert out.amin() >= 0
    assert out.amax() <= 1 + 1e-6
    areas = out[:, 0].sum((1, 2)) / 144
    assert 0.4 < areas.min() < 0.6
    assert 1.7 < areas.max() < 2.3
    position = torch.arange(32.0)
    centres = (out[:, 0].sum(1) * position).sum(1) / out[:, 0].sum((1, 2))
    assert 11.5 < centres.min() < 13.5
    assert 17.5 < centres.max() < 19.5
    assert torch.equal(warped(images, 0.4, rng()), out)
    torch.testing.assert_close(warped(images, 1e-9, rng()), images)


def test_warp_turns_without_a_shear() -> None:
    """A long line, in images of any shape, turns by up to 0.3 radians and stays a line."""
    for height, width in ((48, 48), (32, 96)):
        images = torch.zeros(200, 1, height, width)
        images[:, :, height // 2 - 1 : height // 2 + 1] = 1
        out = warped(images, 0.4, rng())[:, 0].double()
        across, down = torch.arange(float(width)), torch.arange(float(height))[:, None]
        mass = out.sum((1, 2))
        x, y = (
            position - (out * position).sum((1, 2), keepdim=True) / mass.view(-1, 1, 1)
            for position in (across, down)
        )
        slopes = (out * x * y).sum((1, 2)) / (out * x * x).sum((1, 2))
        steepest = torch.tan(torch.tensor(0.3)).item() * 2.25
        assert 0.3 < slopes.abs().max() < steepest, "a stretch makes it steeper by up to e^0.8"


def test_new_views_with_teacher_flip_train_as_stored_means_do(batches: list[FeedBatch]) -> None:
    asked, images = teacher_network(), batches[0].images
    (logits, (maps,)), (others, (other_maps,)) = (
        asked.with_features(seen, ["network.relu"]) for seen in (images, images.flip(3))
    )
    pooled = (maps + other_maps).mean((2, 3)) / 2
    with_means = batches[0]._replace(teacher_logits=(logits + others) / 2, teacher_pooled=pooled)
    students = []
    for flip, batch in ((True, batches[0]), (False, with_means), (False, batches[0])):
        each = distiller(w_ce=0.0, feature="pooled", teacher_flip=flip)
        train(each, [batch], 1)
        students.append(torch.cat([value.flatten() for value in weights(each.student)]))
    ours, stored, plain = students
    torch.testing.assert_close(ours, stored, rtol=1e-5, atol=1e-6)
    assert (ours - plain).abs().max() > 1e-4


def test_the_last_steps_see_no_mixed_image(batches: list[FeedBatch]) -> None:
    settings = {"w_ce": 0.0, "mixup": 0.5, "cutmix": 0.5}
    ours, mixing, plain = distiller(**settings, mix_until=0.5), distiller(**settings), distiller(w_ce=0.0)
    for each in (ours, mixing):
        train(each, batches, 3)
    plain.load_state_dict(copy.deepcopy(ours.state_dict()))
    for each in (ours, mixing, plain):
        train(each, batches, 3)
    assert same(weights(ours.student), weights(plain.student))
    assert not same(weights(ours.student), weights(mixing.student))
