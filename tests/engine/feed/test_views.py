"""Stored views: their draws, and both kinds of feed against the images that the teacher saw."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.bank.rows import Int
from engine.bank.views import TeacherOutputs, ViewsFile, ViewsOwner
from engine.config.feed import FeedConfig
from engine.config.views import StoredViews
from engine.feed.feed import Feed
from engine.feed.index import Index
from engine.feed.open import open_feed
from engine.feed.sampler import Sampler
from engine.feed.views import Partners, crops, mix, partners
from engine.stages.views import view_images
from tests.engine.feed.spans import TinyBank, spans

CPU = torch.device("cpu")
CONFIG = StoredViews(count=4, mixup=0.5, seed=3)


def seeds(count: int, seed: int = 3) -> np.ndarray:
    return np.full(count, seed, np.uint64)


def mixes(config: StoredViews, keys: Int, views: Int, size: int) -> Partners:
    positions = np.arange(len(keys)) % size
    return partners(config, seeds(len(keys)), keys, views, positions, np.full(len(keys), size))


def test_a_view_depends_on_seed_key_and_number_alone() -> None:
    keys, views = np.arange(1000, 1400), np.arange(400) % 4
    every = crops(CONFIG, seeds(400), keys, views)
    order = np.random.default_rng(0).permutation(400)[:50]
    some = crops(CONFIG, seeds(50), keys[order], views[order])
    for whole, part in zip(every, some, strict=True):
        np.testing.assert_array_equal(whole[order], part)
    assert (every.top != crops(CONFIG, seeds(400, 4), keys, views).top).mean() > 0.5
    more = crops(replace(CONFIG, count=9), seeds(400), keys, views)
    for few, many in zip(every, more, strict=True):
        np.testing.assert_array_equal(few, many)


def test_every_second_view_is_mirrored() -> None:
    keys = np.repeat(np.arange(200), 4)
    flips = crops(CONFIG, seeds(800), keys, np.tile(np.arange(4), 200)).flip.reshape(200, 4)
    assert (flips[:, :-1] != flips[:, 1:]).all()
    assert 60 < flips[:, 0].sum() < 140
    unflipped = crops(replace(CONFIG, flip=False), seeds(800), keys, np.tile(np.arange(4), 200))
    assert not unflipped.flip.any()


@pytest.mark.parametrize(("share", "mixed"), [(0, 0), (0.5, 2), (0.25, 1), (0.75, 3), (1, 4)])
def test_the_share_of_mixed_views_is_exact_for_every_image(share: float, mixed: int) -> None:
    keys, views = np.repeat(np.arange(50), 4), np.tile(np.arange(4), 50)
    found = mixes(replace(CONFIG, mixup=share), keys, views, 50)
    assert np.bincount(found.mixed // 4, minlength=50).tolist() == [mixed] * 50


def test_partners_are_other_images_of_the_shard_and_weights_are_uniform() -> None:
    keys, views = np.arange(4000), np.ones(4000, np.int64)
    found = mixes(replace(CONFIG, mixup=1.0), keys, views, 40)
    own = np.arange(4000) % 40
    assert (found.positions != own).all()
    assert (np.bincount((found.positions - own) % 40, minlength=40)[1:] > 50).all()
    assert found.weights.dtype == np.float32
    assert found.weights.min() >= 0
    assert found.weights.max() < 1
    assert np.histogram(found.weights, 4, (0, 1))[0].min() > 900


def test_the_only_image_of_a_shard_is_its_own_partner() -> None:
    assert (
        mixes(replace(CONFIG, mixup=1.0), np.arange(3), np.zeros(3, np.int64), 1).positions.tolist()
        == [0] * 3
    )


def test_mixing_is_a_weighted_mean() -> None:
    images = torch.arange(5.0).view(5, 1, 1, 1).repeat(1, 3, 2, 2)
    found = mix(images.clone(), np.array([0, 2]), np.array([0.25, 0.75], np.float32))
    assert found[:, 0, 0, 0].tolist() == [0.25 * 0 + 0.75 * 3, 1, 0.75 * 2 + 0.25 * 4]


def coded(bank: TinyBank, counts: tuple[int, ...]) -> None:
    """Give each shard of the bank's index outputs that name shard, image and view."""
    index, first = Index(), 0
    for shard, count in enumerate(counts):
        numbers = np.arange(first, first + count)
        logits = np.stack([np.stack([100.0 * numbers + view] * 5, 1) for view in range(4)], 1)
        outputs = TeacherOutputs(logits.astype(np.float16), logits[..., :2].astype(np.float16) / 2)
        owner = ViewsOwner(tar="", teacher="", views=replace(CONFIG, seed=shard))
        found = bank.index.shards[shard]
        rows = np.arange(found.rows.start, found.rows.stop)
        locations = bank.index.locations(rows)
        of_shard = replace(
            spans(bank.index.labels(rows).tolist()),
            path=Path(found.path),
            offsets=locations.offsets,
            sizes=locations.sizes,
            keys=locations.keys,
            agrees=bank.index.agrees(rows),
        )
        index.add(of_shard, views=ViewsFile(owner, outputs))
        first += count
    bank.index = index


def opened(bank: TinyBank, kind: str) -> Feed:
    return open_feed(
        FeedConfig(kind=kind, threads=2),
        bank.index,
        codec=bank.codec,
        image_size=(bank.side, bank.side),
        channels=bank.channels,
        batch_size=16,
        device=CPU,
    )


@pytest.mark.parametrize(("codec", "channels"), [("raw", 3), ("raw", 1), ("png", 3)])
@pytest.mark.parametrize("kind", ["dali", "torch"])
def test_a_feed_gives_the_images_that_the_teacher_saw_with_its_outputs(
    kind: str, codec: str, channels: int, tmp_path: Path
) -> None:
    counts = (9, 14)
    bank = TinyBank.empty(tmp_path, codec, 32, channels)
    for count in counts:
        bank.add(count)
    coded(bank, counts)
    pixels, starts = bank.decoded_pixels(), np.array([0, 9])
    with opened(bank, kind) as feed:
        sampler = Sampler(bank.index, batch_size=8, seed=1, views=CONFIG)
        samples, batches = list(sampler.samples(0, 40)), list(feed.batches(sampler, 0, 40))
    seen = set()
    for sample, batch in zip(samples, batches, strict=True):
        assert sample.views is not None
        assert batch.teacher_logits is not None
        assert batch.teacher_pooled is not None
        assert len(batch.images) == len(batch.labels) == 8
        for position, (row, view) in enumerate(zip(sample.rows, sample.views.numbers, strict=True)):
            shard = int(row >= 9)
            of_shard = slice(starts[shard], starts[shard] + counts[shard])
            expected = view_images(
                torch.from_numpy(pixels[of_shard]),
                bank.index.keys(np.arange(of_shard.start, of_shard.stop)),
                np.array([row - starts[shard]]),
                np.array([view]),
                replace(CONFIG, seed=shard),
                CPU,
            )
            torch.testing.assert_close(batch.images[position : position + 1], expected, rtol=0, atol=1e-6)
            assert batch.teacher_logits[position, 0] == 100 * row + view
            assert batch.teacher_pooled[position, 0] == (100 * row + view) / 2
            seen.add((int(row), int(view)))
    assert len(seen) == 4 * sum(counts)


def test_an_image_shows_all_its_views_before_it_repeats_one(tmp_path: Path) -> None:
    bank = TinyBank.empty(tmp_path, "raw", 8, 3)
    bank.add(10)
    coded(bank, (10,))
    samples = Sampler(bank.index, batch_size=10, seed=1, views=CONFIG).samples(0, 4)
    views = {
        (int(row), int(view))
        for each in samples
        for row, view in zip(each.rows, each.views.numbers, strict=True)
    }
    assert len(views) == 40


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_last_steps_see_all_unmixed_views_and_no_others(share: float, tmp_path: Path) -> None:
    bank = TinyBank.empty(tmp_path, "raw", 8, 3)
    bank.add(10)
    coded(bank, (10,))
    config = replace(CONFIG, mixup=share)
    settings = {"batch_size": 10, "seed": 1, "first_step": 2, "views": config}
    always = list(Sampler(bank.index, **settings).samples(2, 14))
    until = list(Sampler(bank.index, **settings, unmixed_from=6).samples(2, 14))
    for one, other in zip(always, until, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
    for one, other in zip(always[:4], until[:4], strict=True):
        np.testing.assert_array_equal(one.views.numbers, other.views.numbers)
        np.testing.assert_array_equal(one.reads, other.reads)
    unmixed = {
        number for number in range(4) if not len(mixes(config, np.zeros(1, int), np.array([number]), 9).mixed)
    }
    assert not any(len(each.views.mixed) for each in until[4:])
    assert all(len(each.reads) == 10 for each in until[4:])
    seen = {
        (int(row), int(view))
        for each in until[4:]
        for row, view in zip(each.rows, each.views.numbers, strict=True)
    }
    assert seen == {(row, view) for row in range(10) for view in unmixed}
