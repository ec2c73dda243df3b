"""Random networks of a given size, and their folders."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

from bench import full_size
from bench.__main__ import command
from bench.random_networks import init_weights, open_clip_network, tiny_autoencoder, uninitialized
from engine.cli.main import main
from engine.cli.resolve import read_networks
from engine.models.loading import load_classifier
from engine.models.priors import load_clip, load_prior
from engine.recipes.load import load_recipe
from tests.bench import tiny_networks

TINY_CLIP = "tiny-for-the-bench"


@pytest.fixture
def tiny_clip(tmp_path: Path) -> str:
    """Register a tiny open_clip architecture; return its name."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / f"{TINY_CLIP}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    return TINY_CLIP


def test_weights_have_variance_1_over_fan_in_and_norms_are_identities() -> None:
    with uninitialized(torch.float16, "cpu"):
        network = nn.Sequential(nn.Conv2d(64, 32, 3), nn.BatchNorm2d(32), nn.Linear(4096, 4096))
    assert torch.get_default_dtype() == torch.float32
    init_weights(network)
    conv, norm, linear = network
    assert conv.weight.dtype == linear.weight.dtype == torch.float16
    assert conv.weight.float().std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.03)
    assert linear.weight.float().std().item() == pytest.approx(4096**-0.5, rel=0.01)
    assert (norm.weight == 1).all()
    assert (norm.running_var == 1).all()
    assert not conv.bias.any()
    assert not any(weight.requires_grad for weight in network.parameters())
    again = init_weights(nn.Linear(4096, 4096).half())
    assert torch.equal(again.weight, init_weights(nn.Linear(4096, 4096).half()).weight)
    assert not torch.equal(again.weight, init_weights(nn.Linear(4096, 4096).half(), seed=1).weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_finite_and_depend_on_the_input(dtype: torch.dtype, tiny_clip: str) -> None:
    clip = open_clip_network(tiny_clip, dtype=dtype)
    embeddings = clip.encode_image(torch.rand(2, 3, 24, 24).to(dtype))
    images = tiny_autoencoder(dtype=dtype).decode(torch.randn(2, 4, 4, 4).to(dtype)).sample
    for values in (embeddings, images):
        assert values.dtype == dtype
        assert values.isfinite().all()
        assert not torch.allclose(values[0], values[1])


def test_positions_of_the_encoder_are_counted() -> None:
    encoder = tiny_networks.pipeline().image_encoder
    (ids,) = (values for name, values in encoder.named_buffers() if "position_ids" in name)
    assert ids.flatten().tolist() == list(range(5))


def test_full_size_folders_load_like_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(full_size, "UNET_SD_1_5", tiny_networks.UNET)
    monkeypatch.setattr(full_size, "VAE_SD_1_5", tiny_networks.VAE)
    monkeypatch.setattr(full_size, "ENCODER_VIT_L_14", tiny_networks.ENCODER)
    monkeypatch.setattr(full_size, "CLIP", tiny_clip)
    out = tmp_path / "full"
    assert main(command, ["full-size", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out / 'image-variation'}: 0.00 GB in " in said
    recipe = load_recipe(str(out / "recipe.yaml"))
    assert len(recipe.class_names) == 1000
    prior = load_prior(recipe.augment.prior, "cpu")
    assert prior.latent_shape == (4, 8, 8)
    stored = out / "image-variation" / "unet" / "diffusion_pytorch_model.safetensors"
    assert stored.stat().st_size < 2.5 * sum(weight.numel() for weight in prior.unet.parameters())
    clip = load_clip(recipe.filter.model, recipe.filter.pretrained, "cpu")
    assert clip.embed_images(torch.zeros(2, 3, 24, 24, dtype=torch.uint8)).isfinite().all()
    assert clip.embed_texts(["a bag"]).isfinite().all()
    teacher = load_classifier(read_networks(recipe).teacher, "teacher")
    logits = teacher(torch.rand(2, 3, 224, 224))
    assert logits.shape == (2, 1000)
    assert logits.std() > 0.1
