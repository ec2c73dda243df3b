"""Both kinds of feed against the augmentation in plain torch, pixel by pixel."""

import contextlib
import gc
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config.feed import FeedConfig
from engine.config.views import Views
from engine.errors import UserError
from engine.feed.feed import DTYPES, Feed, FeedBatch
from engine.feed.open import open_feed
from engine.feed.sampler import BatchSample, Sampler
from engine.training.run_folder import lock_run
from kernels.crop_flip import crop_flip_nchw
from tests.engine.feed.spans import TinyBank

CPU = torch.device("cpu")
KINDS = ["dali", "torch"]
TOLERANCES = {"raw": 0.0, "png": 0.0, "webp": 2.0, "jpeg": 2.0}
"""In grey levels, against Pillow's decoder; DALI's decoder may round differently."""


def bank_of(
    folder: Path, codec: str = "raw", side: int = 32, shards: tuple[int, ...] = (13, 20), channels: int = 3
) -> TinyBank:
    bank = TinyBank.empty(folder, codec, side, channels)
    for count in shards:
        bank.add(count)
    return bank


def opened(
    bank: TinyBank, kind: str, *, batch_size: int = 8, device: torch.device = CPU, **config: Any
) -> Feed:
    size = (bank.side, bank.side)
    used = FeedConfig(kind=kind, threads=2, **config)
    return open_feed(
        used,
        bank.index,
        codec=bank.codec,
        image_size=size,
        channels=bank.channels,
        batch_size=batch_size,
        device=device,
    )


def expected_images(pixels: np.ndarray, sample: BatchSample, pad: int = 4) -> Tensor:
    """Return float32 [B, 3, H, W], cropped by `crop_flip_nchw`, which has its own tests."""
    images = torch.from_numpy(pixels[sample.rows]).permute(0, 3, 1, 2)
    top, left = (torch.from_numpy(column).long() for column in (sample.crops.top, sample.crops.left))
    crops = crop_flip_nchw(images, top, left, torch.from_numpy(sample.crops.flip), pad=pad)
    return crops.float() * np.float32(1 / 255)


def assert_equal(ours: FeedBatch, theirs: FeedBatch) -> None:
    for one, other in zip(ours, theirs, strict=True):
        if one is not None or other is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("codec", "channels"), [*((codec, 3) for codec in TOLERANCES), ("raw", 1), ("png", 1), ("jpeg", 1)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_gives_what_the_sampler_says(kind: str, codec: str, channels: int, tmp_path: Path) -> None:
    """Batches are RGB for any number of channels in the files."""
    bank = bank_of(tmp_path, codec, channels=channels)
    pixels = bank.decoded_pixels()
    sampler = Sampler(bank.index, batch_size=8, seed=1, first_step=30)
    with opened(bank, kind) as feed:
        batches = list(feed.batches(sampler, 30, 40))
    assert len(batches) == 10
    for sample, batch in zip(sampler.samples(30, 40), batches, strict=True):
        expected = expected_images(pixels, sample)
        torch.testing.assert_close(batch.images, expected, rtol=0, atol=TOLERANCES[codec] / 255)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.tolist() == (sample.rows % 5).tolist()
        assert batch.agrees.tolist() == (sample.rows % 3 > 0).tolist()


@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("codec", ["raw", "png"])
@pytest.mark.parametrize("kind", KINDS)
def test_crops_by_the_padding_of_the_sampler(kind: str, codec: str, pad: int, tmp_path: Path) -> None:
    bank = bank_of(tmp_path, codec)
    sampler = Sampler(bank.index, batch_size=8, seed=1, views=Views(crop_padding=pad, flip=False))
    with opened(bank, kind) as feed:
        batches = list(feed.batches(sampler, 0, 2))
    for sample, batch in zip(sampler.samples(0, 2), batches, strict=True):
        torch.testing.assert_close(
            batch.images, expected_images(bank.decoded_pixels(), sample, pad), rtol=0, atol=0
        )
        if pad == 0:
            plain = torch.from_numpy(bank.decoded_pixels()[sample.rows]).permute(0, 3, 1, 2)
            torch.testing.assert_close(batch.images * 255, plain.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_round_the_float32_once(kind: str, dtype: Any, tmp_path: Path) -> None:
    bank = bank_of(tmp_path)
    sampler = Sampler(bank.index, batch_size=8, seed=1)
    with opened(bank, kind, dtype=dtype) as feed:
        (batch,) = feed.batches(sampler, 2, 3)
    expected = expected_images(bank.pixels, sampler.sample(2)).to(DTYPES[dtype])
    torch.testing.assert_close(batch.images, expected, rtol=0, atol=0)


@pytest.mark.parametrize("codec", ["raw", "png"])
@pytest.mark.parametrize("kind", KINDS)
def test_resumes_at_any_step_bit_for_bit(kind: str, codec: str, tmp_path: Path) -> None:
    bank = bank_of(tmp_path, codec)
    sampler = Sampler(bank.index, batch_size=8, seed=1, class_balance=True)
    with opened(bank, kind) as feed:
        whole = list(feed.batches(sampler, 0, 12))
        for first in (1, 7, 11, 12):
            tail = list(feed.batches(sampler, first, 12))
            assert len(tail) == 12 - first
            for ours, theirs in zip(tail, whole[first:], strict=True):
                assert_equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_stays_as_it_is_while_later_ones_come(kind: str, tmp_path: Path) -> None:
    bank = bank_of(tmp_path)
    sampler = Sampler(bank.index, batch_size=8, seed=1)
    with opened(bank, kind) as feed:
        kept, copies = [], []
        for batch in feed.batches(sampler, 0, 60):
            kept.append(batch.images)
            copies.append(batch.images.clone())
    del feed
    gc.collect()
    assert all(torch.equal(image, copy) for image, copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_an_iterator_left_early_does_not_reach_into_the_next(kind: str, tmp_path: Path) -> None:
    bank = bank_of(tmp_path, "png")
    sampler = Sampler(bank.index, batch_size=8, seed=1)
    with opened(bank, kind) as feed:
        left = feed.batches(sampler, 0, 50)
        first = next(left)
        again = list(feed.batches(sampler, 0, 2))
        assert_equal(again[0], first)
        assert list(left) == []


@pytest.mark.parametrize("kind", KINDS)
def test_reads_nothing_for_steps_beyond_the_last(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = bank_of(tmp_path)
    sampler = Sampler(bank.index, batch_size=8, seed=1)
    steps_read: list[range] = []
    samples = sampler.samples

    def watched(first: int, last: int) -> Iterator[BatchSample]:
        for step, sample in enumerate(samples(first, last), first):
            steps_read.append(range(step, last))
            yield sample

    monkeypatch.setattr(sampler, "samples", watched)
    with opened(bank, kind) as feed:
        assert len(list(feed.batches(sampler, 3, 5))) == 2
    assert [steps.start for steps in steps_read] == [3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_that_grew_goes_on_in_the_same_feed(kind: str, tmp_path: Path) -> None:
    bank = bank_of(tmp_path, shards=(10,))
    with opened(bank, kind) as feed:
        old = Sampler(bank.index, batch_size=8, seed=1)
        before = list(feed.batches(old, 0, 5))
        bank.add(40)
        new = Sampler(bank.index, batch_size=8, seed=1, first_step=5, newest_rows=range(10, 50), newest=0.5)
        for sample, batch in zip(new.samples(5, 9), feed.batches(new, 5, 9), strict=True):
            torch.testing.assert_close(batch.images, expected_images(bank.pixels, sample), rtol=0, atol=0)
            assert (sample.rows >= 10).sum() >= 4
        for ours, theirs in zip(feed.batches(old, 0, 5), before, strict=True):
            assert_equal(ours, theirs)


def test_growth_builds_no_new_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia.dali import Pipeline

    builds = counted(monkeypatch, Pipeline, "__init__")
    bank = bank_of(tmp_path)
    with opened(bank, "dali") as feed:
        for first in range(0, 50, 5):
            bank.add(10)
            sampler = Sampler(bank.index, batch_size=8, seed=1, first_step=first)
            next(feed.batches(sampler, first, first + 5))
    assert len(builds) == 1


def counted(patch: pytest.MonkeyPatch, owner: type, name: str) -> list[None]:
    calls: list[None] = []
    original: Callable[..., Any] = getattr(owner, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return original(*args, **kwargs)

    patch.setattr(owner, name, counting)
    return calls


def test_growth_starts_no_new_workers(tmp_path: Path) -> None:
    """Neither does an iterator that is left early, nor an error."""
    bank = bank_of(tmp_path, "png")
    with opened(bank, "torch") as feed:
        workers = []
        for first in range(0, 50, 5):
            bank.add(10)
            sampler = Sampler(bank.index, batch_size=8, seed=1, first_step=first)
            next(feed.batches(sampler, first, first + 5))
            given = feed.batches(sampler, first, first + 5)
            for sample, batch in zip(sampler.samples(first, first + 5), given, strict=True):
                torch.testing.assert_close(batch.images, expected_images(bank.pixels, sample), rtol=0, atol=0)
            workers.append({process.pid for process in multiprocessing.active_children()})
        bank.add(10).path.unlink()
        gone = Sampler(bank.index, batch_size=8, seed=1, newest_rows=range(133, 143), newest=0.9)
        with pytest.raises(UserError, match="No such file"):
            list(feed.batches(gone, 0, 5))
        assert {process.pid for process in multiprocessing.active_children()} == workers[0]
    assert len(workers[0]) == 2
    assert all(each == workers[0] for each in workers)
    assert multiprocessing.active_children() == []


FEEDING = """
import sys, time
from pathlib import Path
from engine.feed.sampler import Sampler
from engine.training.run_folder import lock_run
from tests.engine.feed.test_feeds import bank_of, opened
folder = Path(sys.argv[1])
bank = bank_of(folder, "png")
with lock_run(folder / "out", resume=False), opened(bank, "torch") as feed:
    next(feed.batches(Sampler(bank.index, batch_size=8, seed=1), 0, 3))
    print("fed", flush=True)
    time.sleep(600)
"""


def test_workers_of_a_killed_process_hold_no_lock(tmp_path: Path) -> None:
    """A killed run can be continued at once."""
    arguments = [sys.executable, "-c", FEEDING, str(tmp_path)]
    with subprocess.Popen(arguments, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE) as feeding:
        assert feeding.stdout is not None
        assert feeding.stdout.readline() == b"fed\n"
        feeding.kill()
    for _ in range(20):  # an orphaned worker notices by itself after five seconds
        with contextlib.suppress(UserError), lock_run(tmp_path / "out", resume=True):
            return
        time.sleep(0.1)
    pytest.fail("the folder is still locked")


def test_a_feed_does_not_advance_the_global_generator(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, "png")
    before = torch.get_rng_state()
    with opened(bank, "torch") as feed:
        list(feed.batches(Sampler(bank.index, batch_size=8, seed=1), 0, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_more_shards_than_files_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.feed.tars._MAX_OPEN", 3)
    bank = bank_of(tmp_path, shards=(2,) * 12)
    files = len(list(Path("/proc/self/fd").iterdir()))
    sampler = Sampler(bank.index, batch_size=8, seed=1)
    with opened(bank, "torch") as feed:
        for sample, batch in zip(sampler.samples(0, 9), feed.batches(sampler, 0, 9), strict=True):
            torch.testing.assert_close(batch.images, expected_images(bank.pixels, sample), rtol=0, atol=0)
            assert len(list(Path("/proc/self/fd").iterdir())) <= files + 3
    assert len(list(Path("/proc/self/fd").iterdir())) == files


@pytest.mark.gpu
@pytest.mark.parametrize("codec", TOLERANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind: str, codec: str, tmp_path: Path) -> None:
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    bank = bank_of(tmp_path, codec)
    pixels = bank.decoded_pixels()
    sampler = Sampler(bank.index, batch_size=8, seed=1)
    with opened(bank, kind, device=torch.device("cuda", 0)) as feed:
        for sample, batch in zip(sampler.samples(0, 9), feed.batches(sampler, 0, 9), strict=True):
            assert batch.images.device.type == batch.labels.device.type == "cuda"
            expected = expected_images(pixels, sample)
            torch.testing.assert_close(batch.images.cpu(), expected, rtol=0, atol=4 / 255)


@pytest.mark.gpu
def test_both_kinds_give_the_same_bits_on_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    bank = bank_of(tmp_path)
    sampler = Sampler(bank.index, batch_size=8, seed=1)
    gpu = torch.device("cuda", 0)
    with opened(bank, "dali", device=gpu) as dali, opened(bank, "torch", device=gpu) as loader:
        for ours, theirs in zip(dali.batches(sampler, 0, 9), loader.batches(sampler, 0, 9), strict=True):
            assert_equal(ours, theirs)
