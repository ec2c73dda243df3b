"""Priors are read from the formats of diffusers and open_clip, and bad folders are named in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.errors import UserError
from engine.models.priors import ClipModel, DiffusionPrior, load_clip, load_prior
from tests.tiny_pipelines import put_tiny_autoencoder
from tests.tiny_priors import CLIP_SIZE, EMBED_DIM, write_clip, write_prior


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prior(tmp_path_factory.mktemp("prior"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipModel:
    return load_clip(f"local-dir:{clip_folder}", None, "cpu")


def test_prior_describes_its_folder(prior_folder: Path) -> None:
    prior = load_prior(str(prior_folder), "cpu")
    assert (prior.latent_shape, prior.image_shape, prior.encoder_size) == ((4, 8, 8), (16, 16), 16)
    written = json.loads((prior_folder / "feature_extractor/preprocessor_config.json").read_text())
    assert prior.encoder_mean == tuple(written["image_mean"])
    assert prior.encoder_std == tuple(written["image_std"])
    assert prior.scheduler_config["beta_end"] == 0.012


@pytest.mark.parametrize("part", ["vae", "unet", "image_encoder"])
def test_fp16_folder_loads_frozen_in_float32_with_the_stored_values(tmp_path: Path, part: str) -> None:
    folder = write_prior(tmp_path / "half", dtype=torch.float16)
    module = getattr(load_prior(str(folder), "cpu"), part)
    (file,) = (folder / part).glob("*.safetensors")
    stored = load_file(file)
    assert not module.training
    parameters = dict(module.named_parameters())
    assert parameters.keys() <= stored.keys()
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
        assert stored[name].dtype == torch.float16
        torch.testing.assert_close(parameter, stored[name].float(), rtol=0, atol=0)


def test_unet_and_vae_are_channels_last(prior_folder: Path) -> None:
    prior: DiffusionPrior = load_prior(str(prior_folder), "cpu")
    for module in (prior.unet, prior.vae):
        weights = [w for w in module.parameters() if w.dim() == 4 and w.shape[2] > 1]
        assert weights
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_a_tiny_autoencoder_takes_the_place_of_the_vae(prior_folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    folder = shutil.copytree(prior_folder, tmp_path / "taesd")
    put_tiny_autoencoder(folder)
    prior = load_prior(str(folder), "cpu")
    assert isinstance(prior.vae, AutoencoderTiny)
    assert (prior.latent_shape, prior.image_shape) == ((4, 8, 8), (16, 16))
    stored = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[name], weight) for name, weight in prior.vae.named_parameters())


def _drop_weight(folder: Path) -> None:
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["decoder.conv_in.bias"]
    save_file(weights, file)


def _truncate(folder: Path) -> None:
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def _other_pipeline(folder: Path) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "StableDiffusionPipeline"}))


def _other_autoencoder(folder: Path) -> None:
    file = folder / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "AutoencoderDC"}))


def _shifting_autoencoder(folder: Path) -> None:
    file = folder / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"latents_mean": [0.1, 0.2, 0.3, 0.4]}))


def _stored(file: str, **changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _mean_of_255(folder: Path) -> None:
    file = folder / "feature_extractor/preprocessor_config.json"
    given = {"image_mean": [122.77, 116.75, 104.09], "image_std": [68.5, 66.63, 70.32]}
    file.write_text(json.dumps(json.loads(file.read_text()) | given))


def _no_mean(folder: Path) -> None:
    (folder / "feature_extractor/preprocessor_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(lambda f: (f / "model_index.json").unlink(), "model_index.json", id="no-index"),
        pytest.param(
            _other_pipeline,
            "is for a StableDiffusionPipeline; give a StableDiffusionImageVariationPipeline folder",
            id="other-pipeline",
        ),
        pytest.param(
            _other_autoencoder,
            "/vae is of type AutoencoderDC; use an AutoencoderKL or AutoencoderTiny",
            id="other-autoencoder",
        ),
        pytest.param(_shifting_autoencoder, "/vae has latents_mean", id="shifting-autoencoder"),
        pytest.param(
            lambda f: put_tiny_autoencoder(f, latent_channels=16),
            "/vae makes 16 latent channels, but its unet takes 4",
            id="vae-does-not-fit",
        ),
        pytest.param(lambda f: shutil.rmtree(f / "vae"), "/vae", id="no-vae"),
        pytest.param(lambda f: shutil.rmtree(f / "unet"), "/unet", id="no-unet"),
        pytest.param(lambda f: shutil.rmtree(f / "image_encoder"), "/image_encoder", id="no-encoder"),
        pytest.param(lambda f: shutil.rmtree(f / "scheduler"), "/scheduler", id="no-scheduler"),
        pytest.param(
            _no_mean, "/feature_extractor/preprocessor_config.json: image_mean is None", id="no-mean"
        ),
        pytest.param(
            _mean_of_255,
            "image_mean [122.77, 116.75, 104.09] and image_std [68.5, 66.63, 70.32] are on the 0",
            id="mean-of-255",
        ),
        pytest.param(
            _stored("unet/config.json", sample_size=None),
            "/unet/config.json: sample_size is None",
            id="no-sample-size",
        ),
        pytest.param(
            _stored("image_encoder/config.json", projection_dim=32),
            "/image_encoder/config.json: projection_dim is 32, cross_attention_dim in unet/config.json 16",
            id="encoder-does-not-fit",
        ),
        pytest.param(
            _stored("scheduler/scheduler_config.json", beta_schedule="sigmoid"),
            "/scheduler/scheduler_config.json: beta_schedule is 'sigmoid'",
            id="unknown-noise",
        ),
        pytest.param(_truncate, "/unet", id="truncated-unet"),
        pytest.param(_drop_weight, "decoder.conv_in.bias", id="missing-weight"),
    ],
)
def test_bad_prior_is_one_line_naming_field_and_file(
    prior_folder: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(prior_folder, folder)
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_prior(str(folder), "cpu")
    message = str(caught.value)
    assert message.startswith("augment.prior")
    assert said in message
    assert str(folder) in message
    assert "\n" not in message


def test_missing_prior_folder_names_the_field() -> None:
    with pytest.raises(UserError, match=r"augment\.prior.*no/such/prior"):
        load_prior("no/such/prior", "cpu")


def test_hub_id_that_cannot_be_read_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"augment\.prior: cannot read nobody/nothing@v1 \(not a local folder"
    ):
        load_prior("nobody/nothing@v1", "cpu")


def test_images_are_embedded_as_open_clip_does(clip: ClipModel) -> None:
    import open_clip

    images = torch.randint(0, 256, (3, 3, CLIP_SIZE, CLIP_SIZE), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    transform = open_clip.image_transform(CLIP_SIZE, is_train=False, mean=mean, std=std)
    pixels = torch.stack([transform(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in images])
    expected = clip.network.encode_image(pixels, normalize=True)
    torch.testing.assert_close(clip.embed_images(images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [12, 48], ids=["enlarged", "reduced"])
def test_images_of_another_size_are_resized_like_pil(clip: ClipModel, size: int) -> None:
    ramp = torch.linspace(0, 255, size)
    image = torch.stack([ramp.expand(size, size), ramp.expand(size, size).T, (ramp[:, None] + ramp) / 2])
    image = image.to(torch.uint8)
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (CLIP_SIZE, CLIP_SIZE), Image.Resampling.BICUBIC
    )
    by_pil = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(CLIP_SIZE, CLIP_SIZE, 3)
    cosine = (clip.embed_images(image[None]) * clip.embed_images(by_pil.permute(2, 0, 1)[None])).sum()
    assert cosine > 0.9999


def test_texts_are_unit_vectors_apart(clip: ClipModel) -> None:
    texts = clip.embed_texts(["a photo of a bag.", "a photo of a coat.", "a photo of a bag."])
    assert texts.shape == (3, EMBED_DIM)
    assert texts.dtype == torch.float32
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts[0], texts[2])
    assert texts[0] @ texts[1] < 0.999


@pytest.mark.parametrize(
    ("model", "pretrained", "said"),
    [
        pytest.param("local-dir:no/such/clip", None, "no/such/clip", id="missing-folder"),
        pytest.param("local-dir:{folder}/open_clip_config.json", None, "open_clip_config.json", id="a-file"),
        pytest.param("ViT-B-33", None, "'ViT-B-33' is not an open_clip architecture", id="architecture"),
        pytest.param("ViT-B-32", None, "needs pretrained weights", id="no-weights"),
        pytest.param("ViT-B-32", "no-such-tag", "no-such-tag", id="unknown-tag"),
    ],
)
def test_bad_clip_is_one_line_naming_the_field(
    clip_folder: Path, model: str, pretrained: str | None, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_clip(model.format(folder=clip_folder), pretrained, "cpu")
    message = str(caught.value)
    assert message.startswith("filter.model")
    assert said in message
    assert "\n" not in message


def test_clip_folder_without_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(clip_folder, folder)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"filter\.model.*weights"):
        load_clip(f"local-dir:{folder}", None, "cpu")


@pytest.mark.parametrize("stored", [None, {}, {"mean": [0.1] * 3}, {"mean": [0.1], "std": [1.0]}], ids=str)
def test_clip_folder_without_mean_and_std_is_refused(
    clip_folder: Path, tmp_path: Path, stored: dict[str, Any] | None
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "odd")
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"preprocess_cfg": stored}))
    with pytest.raises(
        UserError, match=r"filter\.model: .*open_clip_config.json: in preprocess_cfg (mean|std) is"
    ):
        load_clip(f"local-dir:{folder}", None, "cpu")


def test_clip_with_a_mean_of_255_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] |= {"mean": [127.5] * 3, "std": [127.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"^filter\.model: .* in preprocess_cfg mean .* 0\.\.255 .* std \[0\.5"
    ):
        load_clip(f"local-dir:{folder}", None, "cpu")
