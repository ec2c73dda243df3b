"""The sampler against diffusers' pipelines, and the keys, seeds and order of the variations."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from engine.config.augment import SCHEDULERS, AugmentConfig
from engine.errors import NonFiniteError, UserError
from engine.models.priors import DiffusionPrior, load_clip, load_prior
from engine.runtime.networks import OpenPrior, open_prior
from engine.seeding import derive_seed, randn_per_image
from engine.stages.augment import augment, class_tokens, encode_sources, sample
from engine.stages.batch import ImageBatch
from engine.stages.solver import build_scheduler
from tests.runtime_options import torch_options
from tests.tiny_pipelines import put_tiny_autoencoder
from tests.tiny_priors import CLASS_NAMES, EMBED_DIM, write_clip, write_prior

# diffusers 0.42 converts tensors in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prior(tmp_path_factory.mktemp("prior"))


@pytest.fixture(scope="module")
def prior(folder: Path) -> DiffusionPrior:
    return load_prior(str(folder), "cpu")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randn(len(CLASS_NAMES), EMBED_DIM, generator=torch.Generator().manual_seed(3)) * 3


def _config(**changes: Any) -> AugmentConfig:
    settings: dict[str, Any] = {
        "prior": "unused",
        "variations": 3,
        "steps": 4,
        "guidance_scale": 1.0,
        "micro_batch": 5,
    }
    return AugmentConfig(**settings | changes)


def _sources(count: int = 3, *, variations: int = 3, size: int = 16) -> ImageBatch:
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return ImageBatch(
        images=images.to(torch.uint8),
        labels=torch.arange(count) % len(CLASS_NAMES),
        keys=(torch.arange(count) + 2) * (variations + 1),
        parents=torch.full((count,), -1),
        seeds=torch.zeros(count, dtype=torch.int64),
    )


def _opened(prior: DiffusionPrior) -> OpenPrior:
    return open_prior(prior, _config(strength=0.5), torch_options())


def _all(sources: ImageBatch, prior: DiffusionPrior, config: AugmentConfig, **changes: Any) -> ImageBatch:
    options = {"seed": 7, "class_tokens": None, "device": CPU} | changes
    return ImageBatch.cat(list(augment(sources, _opened(prior), config, **options)))


def _pil(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert theirs.std() > 0.02, "the reference must not be flat"
    return ((ours - theirs).norm() / theirs.norm()).item()


def _levels_apart(a: Tensor, b: Tensor) -> Tensor:
    return (a.int() - b.int()).abs()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_same_noise_gives_the_image_of_diffusers_variation_pipeline(
    folder: Path, prior: DiffusionPrior, scheduler: str, guidance_scale: float
) -> None:
    import diffusers

    config = _config(scheduler=scheduler, guidance_scale=guidance_scale)
    sources = _sources()
    noise = randn_per_image([1, 2, 3], prior.latent_shape)
    codes = encode_sources(sources, _opened(prior), config, CPU)
    solver = build_scheduler(_opened(prior), config)
    ours = sample(_opened(prior), solver, config, noise, codes.embeddings, None).clamp(0, 1)

    pipeline = diffusers.StableDiffusionImageVariationPipeline.from_pretrained(
        folder, requires_safety_checker=False
    )
    pipeline.scheduler = getattr(diffusers, SCHEDULERS[scheduler][0]).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        _pil(sources.images),
        latents=noise,
        guidance_scale=guidance_scale,
        num_inference_steps=config.steps,
        output_type="pt",
    ).images
    assert _relative_error(ours, theirs) < 1e-3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 0.9])
def test_strength_and_two_tokens_match_diffusers_img2img(
    prior: DiffusionPrior, tokens: Tensor, scheduler: str, strength: float
) -> None:
    config = _config(scheduler=scheduler, strength=strength, guidance_scale=2.0, variations=1, steps=6)
    sources = _sources(variations=1)
    ours = _all(sources, prior, config, class_tokens=tokens)

    pixels = sources.images.float() / 127.5 - 1
    source_latents = prior.vae.encode(pixels).latent_dist.mode() * prior.vae.config.scaling_factor
    embeddings = prior.image_encoder(_normalised(sources.images, prior)).image_embeds
    prompt = torch.stack([embeddings, tokens[sources.labels]], 1)
    _assert_equals_img2img(ours, prior, config, image=source_latents, prompt=prompt)


def test_a_tiny_autoencoder_encodes_and_decodes_as_in_diffusers_img2img(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "prior")
    put_tiny_autoencoder(tmp_path / "prior")
    prior = load_prior(str(tmp_path / "prior"), "cpu")
    config = _config(scheduler="ddim", strength=0.5, guidance_scale=2.0, variations=1, steps=6)
    sources = _sources(variations=1)
    prompt = prior.image_encoder(_normalised(sources.images, prior)).image_embeds[:, None]
    ours = _all(sources, prior, config)
    _assert_equals_img2img(ours, prior, config, image=sources.images.float() / 255, prompt=prompt)


def _assert_equals_img2img(
    ours: ImageBatch, prior: DiffusionPrior, config: AugmentConfig, *, image: Tensor, prompt: Tensor
) -> None:
    """`image`: the sources' scaled latents, or their pixels in [0, 1]."""
    import diffusers

    pipeline = diffusers.StableDiffusionImg2ImgPipeline(
        vae=prior.vae,
        text_encoder=None,
        tokenizer=None,
        unet=prior.unet,
        scheduler=getattr(diffusers, SCHEDULERS[config.scheduler][0]).from_config(prior.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        image=image,
        prompt_embeds=prompt,
        negative_prompt_embeds=torch.zeros_like(prompt),
        strength=config.strength,
        guidance_scale=config.guidance_scale,
        num_inference_steps=config.steps,
        generator=[torch.Generator().manual_seed(int(seed)) for seed in ours.seeds],
        output_type="pt",
    ).images
    assert theirs.std() > 0.02
    apart = _levels_apart(ours.images, (theirs * 255).round().to(torch.uint8))
    assert apart.max() <= 1
    assert (apart == 0).float().mean() > 0.99


def _normalised(images: Tensor, prior: DiffusionPrior) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (prior.encoder_mean, prior.encoder_std))
    return (images.float() / 255 - mean) / std


def test_keys_parents_labels_seeds_and_order(prior: DiffusionPrior) -> None:
    sources = _sources()
    batches = list(augment(sources, _opened(prior), _config(), seed=7, class_tokens=None, device=CPU))
    assert [len(batch) for batch in batches] == [5, 4]
    batch = ImageBatch.cat(batches)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (9, 3, 16, 16)
    assert batch.keys.tolist() == [9, 10, 11, 13, 14, 15, 17, 18, 19]
    assert batch.parents.tolist() == [8, 8, 8, 12, 12, 12, 16, 16, 16]
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert batch.seeds.tolist() == [derive_seed(7, "augment", s, k) for s in (8, 12, 16) for k in range(3)]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_another_micro_batch_makes_the_same_images(
    prior: DiffusionPrior, scheduler: str, strength: float
) -> None:
    config = _config(scheduler=scheduler, strength=strength, guidance_scale=3.0)
    one, all_at_once = (_all(_sources(), prior, replace(config, micro_batch=size)).images for size in (1, 9))
    apart = _levels_apart(one, all_at_once)
    assert (apart <= 1).float().mean() >= 0.999


def test_same_call_twice_is_byte_identical_and_another_seed_is_not(prior: DiffusionPrior) -> None:
    first, again, other = (_all(_sources(), prior, _config(), seed=seed).images for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert _levels_apart(first, other).float().mean() > 1


def test_a_variation_depends_on_its_own_source_only(prior: DiffusionPrior) -> None:
    sources = _sources()
    together = _all(sources, prior, _config())
    alone = _all(sources[1:2], prior, _config())
    assert torch.equal(together.keys[3:6], alone.keys)
    assert (_levels_apart(together.images[3:6], alone.images) <= 1).float().mean() >= 0.999


def test_less_strength_starts_nearer_to_the_source(prior: DiffusionPrior) -> None:
    sources = _sources(2)
    codes = encode_sources(sources, _opened(prior), _config(strength=0.5), CPU)
    assert codes.latents is not None
    reconstructed = prior.vae.decode(codes.latents / prior.vae.config.scaling_factor).sample / 2 + 0.5
    target = reconstructed.clamp(0, 1).repeat_interleave(3, 0) * 255

    def distance(strength: float) -> float:
        images = _all(sources, prior, _config(strength=strength, steps=20)).images
        return (images - target).abs().mean().item()

    assert distance(0.05) < distance(0.4) < distance(1.0)


def test_labels_choose_the_class_token(prior: DiffusionPrior, tokens: Tensor) -> None:
    sources = _sources(1)
    other = replace(sources, labels=sources.labels + 1)
    first, second = (_all(s, prior, _config(), class_tokens=tokens).images for s in (sources, other))
    assert _levels_apart(first, second).max() > 1


@pytest.mark.parametrize("guidance_of", ["all", "class"])
def test_guidance_amplifies_the_tokens_it_names(
    prior: DiffusionPrior, tokens: Tensor, guidance_of: str
) -> None:
    config = _config(
        steps=1, scheduler="ddim", guidance_scale=3.0, guidance_of=guidance_of, class_condition="text"
    )
    noise = randn_per_image([1, 2, 3], prior.latent_shape)
    image = encode_sources(_sources(), _opened(prior), config, CPU).embeddings
    both = torch.cat([image, tokens[:, None]], 1)
    solver = build_scheduler(_opened(prior), config)
    ours = sample(_opened(prior), solver, config, noise, both, None).clamp(0, 1)

    without = torch.cat([image if guidance_of == "class" else image * 0, tokens[:, None] * 0], 1)
    solver.set_timesteps(1)
    with torch.no_grad():
        step = solver.timesteps[0]
        base, full = (prior.unet(noise, step, condition).sample for condition in (without, both))
        latents = solver.step(base + 3.0 * (full - base), step, noise).prev_sample
        theirs = prior.vae.decode(latents / prior.vae.config.scaling_factor).sample
    assert _relative_error(ours, (theirs / 2 + 0.5).clamp(0, 1)) < 1e-4


def test_sources_of_another_size_give_variations_of_that_size(prior: DiffusionPrior) -> None:
    variations = _all(_sources(1, size=32), prior, _config(strength=0.5))
    assert variations.images.shape == (3, 3, 32, 32)


def test_class_tokens_are_unit_embeddings_times_root_width(tmp_path: Path) -> None:
    clip = load_clip(f"local-dir:{write_clip(tmp_path)}", None, "cpu")
    found = class_tokens(clip, CLASS_NAMES, cross_attention_dim=EMBED_DIM)
    expected = clip.embed_texts([f"a photo of a {name}." for name in CLASS_NAMES]) * 4.0  # sqrt(16)
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match=r"augment\.class_condition.*16 dimensions.*takes 768"):
        class_tokens(clip, CLASS_NAMES, cross_attention_dim=768)


def test_non_finite_images_raise_with_their_keys(prior: DiffusionPrior, tokens: Tensor) -> None:
    broken = tokens.clone()
    broken[1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"augment.*keys 13, 14; lower augment.guidance_scale"):
        _all(_sources(), prior, _config(), class_tokens=broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "variation", "prior": ""}, "augment.prior is empty"),
        ({"variations": 0}, "augment.variations must be at least 1, got 0"),
        ({"steps": 0}, "augment.steps must be at least 1, got 0"),
        ({"micro_batch": -1}, "augment.micro_batch must be at least 1, got -1"),
        ({"scheduler": "pndm"}, "augment.scheduler must be one of"),
        ({"guidance_scale": 0.5}, "augment.guidance_scale must be at least 1, got 0.5"),
        ({"guidance_scale": float("nan")}, "augment.guidance_scale must be at least 1, got nan"),
        ({"strength": 0.0}, "augment.strength must lie in (0, 1], got 0.0"),
        ({"strength": 1.2}, "augment.strength must lie in (0, 1], got 1.2"),
        ({"strength": 0.2, "steps": 4}, "augment.strength is 0.2, which leaves no step of augment.steps 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _config(**change)
    assert message in str(caught.value)
