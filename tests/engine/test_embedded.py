"""The embedded assets and the default recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli.main import main
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.config.tensorrt import TensorRtConfig
from engine.datasets import fashion_mnist
from engine.distributed import open_accelerator
from engine.models.loading import load_classifier
from engine.models.priors import load_clip, load_prior
from engine.paths import PROJECT_ROOT
from engine.recipes.load import load_recipe
from engine.run import command
from engine.runtime.base import runtime_options
from engine.runtime.networks import open_prior
from engine.stages.augment import augment, class_tokens, encode_sources, sample
from engine.stages.batch import ImageBatch
from engine.stages.evaluate import accuracy
from engine.stages.solver import build_scheduler
from tests.runtime_options import torch_options

pytestmark = pytest.mark.timeout(600)  # the default recipe takes 217 s on two cores with AVX2 alone

ASSETS = PROJECT_ROOT / "assets" / "fashion-mnist"
CARD = ASSETS / "README.md"


def test_weights_are_safetensors_of_at_most_15_megabytes() -> None:
    weights = [path for path in ASSETS.rglob("*") if path.suffix in {".safetensors", ".bin", ".pt", ".pth"}]
    assert {path.suffix for path in weights} == {".safetensors"}
    assert sum(path.stat().st_size for path in weights) <= 15e6


@pytest.mark.slow
def test_the_teacher_is_as_good_as_its_card_says(summary: dict[str, Any]) -> None:
    assert summary["teacher_top1"] >= 0.925
    assert f"top-1 {summary['teacher_top1']:.2%}" in CARD.read_text()


def test_lenet_5_is_as_good_as_its_card_says(fashion_mnist_root: Path) -> None:
    teacher = load_classifier(load_recipe("lenet").teacher)
    test = fashion_mnist.load("test", fashion_mnist_root)
    top1 = accuracy(teacher, test.images, test.labels, open_accelerator(resolve_compute(ComputeConfig())))
    assert top1 >= 0.9
    assert f"| LeNet-5, one input channel | private | 61,706 | top-1 {top1:.2%} |" in CARD.read_text()


def test_the_two_halves_are_disjoint(fashion_mnist_root: Path) -> None:
    halves = [fashion_mnist.load(split, fashion_mnist_root) for split in ("private", "public")]
    private, public = ({row.numpy().tobytes() for row in half.images[:, 0]} for half in halves)
    assert [len(half.labels) for half in halves] == [30000, 30000]
    assert len(private & public) < 30, "only the few exact duplicates of the data set"


def sources_from(generator: torch.Generator, count: int, stride: int) -> ImageBatch:
    keys = stride * torch.arange(count)
    return ImageBatch(
        images=torch.randint(0, 256, (count, 1, 32, 32), generator=generator, dtype=torch.uint8).expand(
            -1, 3, -1, -1
        ),
        labels=torch.arange(count) % 10,
        keys=keys,
        parents=torch.full_like(keys, -1),
        seeds=torch.zeros_like(keys),
    )


@pytest.mark.parametrize("guidance", [1.0, 2.0], ids=["unguided", "guided"])
def test_the_embedded_prior_gives_the_image_of_diffusers_for_the_same_noise(guidance: float) -> None:
    from diffusers import StableDiffusionImageVariationPipeline

    folder = str(ASSETS / "image-variation")
    recipe = load_recipe(
        "fashion-mnist",
        {
            "augment.guidance_scale": guidance,
            "augment.guidance_of": "all",
            "augment.class_condition": "none",
        },
    )
    prior = open_prior(load_prior(folder, "cpu"), recipe.augment, torch_options())
    sources = sources_from(torch.Generator().manual_seed(0), 3, 1)
    noise = torch.randn(3, *prior.latent_shape, generator=torch.Generator().manual_seed(1))
    scheduler = build_scheduler(prior, recipe.augment)
    codes = encode_sources(sources, prior, recipe.augment, torch.device("cpu"))
    ours = sample(prior, scheduler, recipe.augment, noise, codes.embeddings, None).clamp(0, 1)
    pipeline = StableDiffusionImageVariationPipeline.from_pretrained(folder, requires_safety_checker=False)
    pipeline.scheduler = build_scheduler(prior, recipe.augment)
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pixels = (sources.images.float() / 255 - 0.219) / 0.332
    theirs = pipeline(
        pixels,
        latents=noise,
        guidance_scale=guidance,
        num_inference_steps=recipe.augment.steps,
        output_type="pt",
    ).images
    assert ours.std() > 0.05
    assert torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs) < 1e-3


def test_another_micro_batch_gives_the_same_images_in_the_default_precision() -> None:
    compute = resolve_compute(ComputeConfig())
    accelerator = open_accelerator(compute)
    options = runtime_options(compute, TensorRtConfig(), accelerator.device)
    recipe = load_recipe("fashion-mnist", {"augment.variations": 4})
    prior = load_prior(str(ASSETS / "image-variation"), accelerator.device)
    clip = load_clip(f"local-dir:{ASSETS / 'open_clip'}", None, accelerator.device)
    tokens = class_tokens(clip, recipe.class_names, cross_attention_dim=prior.unet.config.cross_attention_dim)
    sources = sources_from(torch.Generator().manual_seed(0), 16, 5)

    def images(micro_batch: int) -> torch.Tensor:
        config = load_recipe(
            "fashion-mnist", {"augment.variations": 4, "augment.micro_batch": micro_batch}
        ).augment
        opened = open_prior(prior, config, options)
        batches = augment(sources, opened, config, seed=0, class_tokens=tokens, device=accelerator.device)
        return torch.cat([batch.images for batch in batches])

    whole, parts = images(64), images(24)
    assert ((whole.int() - parts.int()).abs() <= 1).double().mean() >= 0.999


@pytest.mark.slow
def test_the_default_recipe_cut_short_learns(summary: dict[str, Any]) -> None:
    assert summary["student_top1"] > 0.4
    assert summary["label_agreement"]["after"] >= summary["label_agreement"]["before"]


@pytest.fixture(scope="module")
def summary(fashion_mnist_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of a run of every stage on the embedded assets, which takes less than a minute."""
    out = tmp_path_factory.mktemp("runs") / "short"
    short = {
        "schedule.init_batches": 1,
        "schedule.rounds": 2,
        "schedule.kd_steps": 50,
        "synthesize.warmup_steps": 5,
        "synthesize.steps": 2,
        "augment.variations": 4,
        "evaluate.root": str(fashion_mnist_root),
    }
    assert main(command, ["--out", str(out), *(f"--{key}={value}" for key, value in short.items())]) == 0
    return json.loads((out / "summary.json").read_text())
