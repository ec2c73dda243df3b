"""The tiny prior, CLIP and teacher compute the same in every runtime."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.config.augment import AugmentConfig
from engine.models.classifier import Classifier
from engine.models.features import forward_with_features
from engine.models.networks import wrn_16_1
from engine.models.priors import ClipModel, load_clip, load_prior
from engine.runtime.micro_batch import MicroBatch
from engine.runtime.networks import classifier_spec, clip_spec, open_clip, open_prior
from engine.runtime.open import open_runtime
from engine.stages.augment import augment
from engine.stages.batch import ImageBatch
from engine.stages.filter import embed, to_parents
from export.store import Store
from tests.runtime_options import torch_options
from tests.tiny_priors import write_clip, write_prior

RUNTIMES = ["openvino", "onnxruntime"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("engines"))


def sources(count: int = 3, size: int = 16) -> ImageBatch:
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    keys = torch.arange(count) * 4
    return ImageBatch(
        images=images.to(torch.uint8),
        labels=torch.arange(count),
        keys=keys,
        parents=torch.full_like(keys, -1),
        seeds=torch.zeros_like(keys),
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_variations_equal_torchs_up_to_rounding(
    tmp_path_factory: pytest.TempPathFactory, store: Store, runtime: str, strength: float
) -> None:
    prior = load_prior(str(write_prior(tmp_path_factory.mktemp("prior"))), "cpu")
    config = AugmentConfig(
        prior="unused", variations=3, steps=4, guidance_scale=2.0, strength=strength, micro_batch=4
    )

    def augmented(runtime: str) -> torch.Tensor:
        opened = open_prior(prior, config, torch_options(runtime=runtime, store=store))
        batches = augment(sources(), opened, config, seed=1, class_tokens=None, device=torch.device("cpu"))
        return torch.cat([batch.images for batch in batches]).int()

    ours, wanted = augmented(runtime), augmented("torch")
    assert wanted.float().std() > 5
    assert (ours - wanted).abs().max() <= 1


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[tuple[torch.Size, ...]]]:
    """Replace `torch.compile`; return the input shapes that each network to be compiled is called with."""
    found: dict[str, set[tuple[torch.Size, ...]]] = {}

    def compile_nothing(module: nn.Module, **_: object) -> nn.Module:
        seen = found.setdefault(type(module).__name__, set())
        module.register_forward_pre_hook(lambda _, given: seen.add(tuple(x.shape for x in given)))
        return module

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return found


def test_the_last_sources_and_variations_cause_no_compilation_of_their_own(
    tmp_path: Path, store: Store, shapes: dict[str, set[tuple[torch.Size, ...]]]
) -> None:
    """Augment 5 sources by 3 variations each in batches of 4, compiled and not."""
    folder = str(write_prior(tmp_path))
    config = AugmentConfig(
        prior="unused", variations=3, steps=2, guidance_scale=2.0, strength=0.5, micro_batch=4
    )

    def augmented(compiled: bool) -> list[ImageBatch]:
        options = torch_options(store=store, compiled=compiled)
        opened = open_prior(load_prior(folder, "cpu"), config, options)
        return list(augment(sources(5), opened, config, seed=1, class_tokens=None, device=options.device))

    ours, wanted = augmented(compiled=True), augmented(compiled=False)
    assert [len(batch) for batch in ours] == [4, 4, 4, 3]
    assert (ImageBatch.cat(ours).images.int() - ImageBatch.cat(wanted).images.int()).abs().max() <= 1
    assert torch.equal(ImageBatch.cat(ours).keys, ImageBatch.cat(wanted).keys)
    assert len(shapes) == 4
    assert {name: len(seen) for name, seen in shapes.items()} == dict.fromkeys(shapes, 1)


def _similarities(originals: ImageBatch, variations: ImageBatch, clip: ClipModel, size: int) -> torch.Tensor:
    micro_batch = MicroBatch("filter", size)
    of_originals, found = (embed(batch.images, clip, micro_batch) for batch in (originals, variations))
    return to_parents(found, variations.parents, of_originals, originals.keys)


def test_the_last_images_of_the_filter_cause_no_compilation_of_their_own(
    tmp_path: Path, store: Store, shapes: dict[str, set[tuple[torch.Size, ...]]]
) -> None:
    clip = load_clip(f"local-dir:{write_clip(tmp_path)}", None, "cpu")
    originals, others = sources(5, 24), sources(11, 24)
    variations = replace(others, parents=originals.keys[torch.arange(11) % 5])
    wanted = _similarities(originals, variations, clip, 11)
    opened = open_clip(
        clip, clip_spec(clip, rows=3, runtime="torch"), torch_options(store=store, compiled=True)
    )
    found = _similarities(originals, variations, opened, 3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert [[shape[0] for (shape,) in seen] for seen in shapes.values()] == [[3]]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_similarities_equal_torchs(tmp_path: Path, store: Store, runtime: str) -> None:
    clip = load_clip(f"local-dir:{write_clip(tmp_path)}", None, "cpu")
    originals, others = sources(2, 24), sources(5, 24)
    variations = ImageBatch(
        images=others.images,
        labels=others.labels,
        keys=others.keys + 1,
        parents=originals.keys[[0, 1, 1, 0, 1]],
        seeds=others.seeds,
    )
    opened = open_clip(
        clip, clip_spec(clip, rows=3, runtime=runtime), torch_options(runtime=runtime, store=store)
    )
    wanted = _similarities(originals, variations, clip, 5)
    found = _similarities(originals, variations, opened, 3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_teacher_and_its_maps_equal_torchs(store: Store, runtime: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = wrn_16_1(10).eval().requires_grad_(False)
    teacher = Classifier(
        network, num_classes=10, in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, feature_path="relu"
    ).eval()
    paths = ["network.relu", "network.stages.0", "network.conv1"]
    spec = classifier_spec("teacher", teacher, paths, image_size=(32, 32), batches=(1, 4, 8))
    images = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    outputs = open_runtime(spec, torch_options(runtime=runtime, store=store))(images=images)
    with torch.no_grad():
        logits, maps = forward_with_features(teacher, images, paths)
    torch.testing.assert_close(outputs["logits"], logits, rtol=1e-4, atol=1e-4)
    for path, wanted in zip(paths, maps, strict=True):
        torch.testing.assert_close(outputs[path], wanted.contiguous(), rtol=1e-4, atol=1e-4)
