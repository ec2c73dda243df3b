"""Shards are the same bytes in any order, with or without overlap, and after failures of others."""

import gc
import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import networks
from engine.cli.resolve import resolve
from engine.distributed import open_accelerator
from engine.errors import NonFiniteError, OutOfMemoryError
from engine.generation.overlap import stage_groups, thread_counts
from engine.generation.shard_generator import ShardGenerator
from engine.generation.stages import GeneratedBatch
from engine.hardware import native_precision
from engine.progress import Progress
from engine.recipes.load import load_recipe
from engine.stages.filter import filter_variations
from tests.tiny_recipe import write_recipe


def generation(path: Path, **settings: Any) -> ShardGenerator:
    overlapped = {"compute.overlap": True, "compute.threads": 2}
    overrides = overlapped | {key.replace("__", "."): value for key, value in settings.items()}
    recipe = load_recipe(str(path), overrides)
    recipe = resolve(recipe)
    accelerator, progress = open_accelerator(recipe.compute), Progress(quiet=True)
    opened = networks.open(
        recipe, networks.load(recipe, accelerator.device), accelerator, thread_counts(stage_groups(recipe))
    )
    return ShardGenerator(recipe, opened, accelerator, progress, groups=stage_groups(recipe))


def digest(made: GeneratedBatch | Exception) -> str:
    assert isinstance(made, GeneratedBatch), made
    rows = made.rows()
    parts = [getattr(rows, name).tobytes() for name in type(rows).__slots__]
    return hashlib.sha256(b"".join([*parts, made.kept_images().tobytes()])).hexdigest()


def digests(generation: ShardGenerator, numbers: Sequence[int]) -> dict[int, str]:
    return {number: digest(made) for number, made in generation.generate(iter(numbers))}


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("start", ["meta", "reinit"])
def test_bytes_depend_on_the_number_alone(start: str, threads: int, tmp_path: Path) -> None:
    """Overlapped, again, in another order, and in sequence with the same threads per stage."""
    warmup = {"warmup_steps": 0 if start == "reinit" else 1}
    path = write_recipe(tmp_path, synthesize={"start": start, **warmup})
    overlapped = generation(path, compute__threads=threads)
    assert len(overlapped.groups) == threads
    found = digests(overlapped, range(6))
    assert len(set(found.values())) == 6
    assert digests(overlapped, range(6)) == found
    assert digests(generation(path, compute__threads=threads), [4, 1, 5, 0, 3, 2]) == found
    alone = generation(path, compute__threads=threads)
    assert {number: digest(alone.make(number, independent=True)) for number in (3, 0)} == {
        number: found[number] for number in (3, 0)
    }


def test_a_criterion_of_texts_takes_the_class_names(recipe: Path) -> None:
    of_texts = generation(recipe, filter__criterion="text")
    clip, names = of_texts.context.networks.clip, of_texts.recipe.names
    assert clip is not None
    made = of_texts.make(0, independent=True)
    assert made.variations is not None
    assert made.result is not None
    texts = clip.embed_texts([f"a photo of a {name}." for name in names])[made.variations.labels]
    expected = (clip.embed_images(made.variations.images) * texts).sum(1)
    torch.testing.assert_close(made.result.similarity, expected, rtol=0, atol=1e-5)
    assert generation(recipe).context.networks.class_texts is None


@pytest.mark.slow
def test_the_same_in_openvino(recipe: Path) -> None:
    settings = {"compute__runtime": "openvino", "compute__precision": native_precision("cpu")}
    found = digests(generation(recipe, **settings), range(4))
    other = generation(recipe, **settings)
    assert digests(other, [3, 1, 0, 2]) == found
    assert digest(other.make(1, independent=True)) == found[1]


def test_the_warm_up_is_shown_and_does_not_count_as_images(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("engine.progress.FIRST_LINE", 0.0)
    monkeypatch.setattr("engine.progress.EVERY_LINE", 0.0)
    made = generation(recipe, synthesize__warmup_steps=2, synthesize__steps=3)
    made.progress = Progress()
    made.make(0)
    lines = [line.split("  ") for line in caplog.messages if line.startswith("synthesize")][1:]
    assert [parts[:2] for parts in lines[:3]] == [
        ["synthesize 0/6 images", f"warming up the generator: {share} %"] for share in (0, 50, 100)
    ]
    assert [parts[0] for parts in lines[3:6]] == [f"synthesize {images}/6 images" for images in (2, 4, 6)]
    assert not any("warming up" in line for parts in lines[3:] for line in parts)
    made.make(1)
    assert sum("warming up" in line for line in caplog.messages) == 3


def test_a_single_group_has_the_same_interface(recipe: Path) -> None:
    serial = generation(recipe, compute__overlap=False)
    threads = threading.active_count()
    found = serial.generate(iter([2, 0]))
    number, made = next(found)
    assert (number, threading.active_count()) == (2, threads)
    assert digest(made) == digest(serial.make(2, independent=True))
    assert [number for number, _ in found] == [0]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("failing", ["warm-up", "synthesize", "augment", "filter"])
def test_a_stage_that_fails_is_the_result_of_its_shard_and_no_other(
    overlap: bool, failing: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synthesis fails after some steps, when the generator's weights have changed."""
    expected = digests(generation(recipe, compute__overlap=overlap, synthesize__steps=3), [2, 3])
    found = generation(recipe, compute__overlap=overlap, synthesize__steps=3)
    calls = 0

    def fail_on(count: int, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                raise NonFiniteError(f"{failing} failed")
            return function(*args, **kwargs)

        return wrapped

    if failing in ("warm-up", "synthesize"):
        inversion = found.synthesizer.inversion(None)
        step = {"warm-up": 1, "synthesize": 1 + 2}[failing]
        keep_best = fail_on(step, inversion.optimizer.step)  # after the loss, before the update
        monkeypatch.setattr(inversion.optimizer, "step", keep_best)
    elif failing == "augment":
        monkeypatch.setattr("engine.stages.augment.sample", fail_on(2, augment_sample()))
    else:
        monkeypatch.setattr("engine.generation.stages.filter_variations", fail_on(1, filter_variations))
    results = dict(found.generate(iter([1, 2, 3])))
    assert isinstance(results[1], NonFiniteError)
    assert {number: digest(results[number]) for number in (2, 3)} == expected


def augment_sample() -> Any:
    from engine.stages.augment import sample

    return sample


def test_closing_early_ends_the_threads_and_the_next_run_is_whole(recipe: Path) -> None:
    found = generation(recipe, synthesize__steps=4)
    expected = digests(found, range(3))
    before = threading.active_count()
    results = found.generate(iter(range(100)))
    next(results)
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() <= before + 1  # the thread that reads the numbers ends by itself
    assert digests(found, range(3)) == expected


def test_augment_and_filter_go_on_with_what_memory_holds(
    recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Images and rows are the same as with the size that fits into memory."""
    expected = digests(generation(recipe, augment__micro_batch=4, filter__micro_batch=3), [1, 2])
    found = generation(recipe, augment__micro_batch=16, filter__micro_batch=6)
    caplog.set_level(logging.INFO)
    prior, forward = found.context.networks.prior, found.context.networks.teacher_forward
    assert prior is not None

    def decode(latents: torch.Tensor) -> Any:
        return limited(4, len(latents)) or prior.vae_decoder(latents=latents)

    def classify(images: torch.Tensor) -> Any:
        return limited(3, len(images)) or forward(images=images)

    opened = found.context.networks
    limits = replace(opened, prior=replace(prior, vae_decoder=decode), teacher_forward=classify)
    found.context = replace(found.context, networks=limits)
    assert digests(found, [1, 2]) == expected
    assert [line.split(";")[0] for line in caplog.messages] == [
        "augment: out of memory with 16 images at once, continuing with 8",
        "augment: out of memory with 8 images at once, continuing with 4",
        "filter: out of memory with 6 images at once, continuing with 3",
    ]


def limited(most: int, count: int) -> None:
    if count > most:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("overlap", [True, False])
def test_synthesis_out_of_memory_names_its_batch_size(
    overlap: bool, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = generation(recipe, compute__overlap=overlap)
    monkeypatch.setattr(found.synthesizer, "_invert", lambda *_: limited(0, 6))
    ((_, error),) = found.generate(iter([0]))
    assert isinstance(error, OutOfMemoryError)
    assert str(error).startswith(
        "synthesize: out of memory with 6 images at once; lower synthesize.batch_size"
    )


def weight_storages() -> set[int]:
    with_data = [value for value in gc.get_objects() if type(value) is torch.nn.Parameter and value.numel()]
    return {value.untyped_storage().data_ptr() for value in with_data if value.device.type != "meta"}


def test_groups_copy_no_weights(recipe: Path) -> None:
    found = generation(recipe, compute__threads=3)
    before = weight_storages()
    results = found.generate(iter(range(4)))
    for _ in range(3):
        next(results)  # all stages are running
        assert weight_storages() <= before
    results.close()
    teacher = {value.data_ptr() for value in found.context.networks.teacher.parameters()}
    assert teacher < before


def test_everything_made_is_on_the_cpu_and_whole(recipe: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for _, made in generation(recipe, compute__device=device).generate(iter(range(2))):
        assert isinstance(made, GeneratedBatch)
        assert made.variations is not None
        assert made.result is not None
        tensors = [
            *(getattr(batch, name) for batch in (made.sources, made.variations) for name in batch.__slots__),
            *vars(made.result).values(),
            made.source_top1,
            made.source_confidence,
        ]
        assert all(tensor.device.type == "cpu" for tensor in tensors)
