"""Making the assets, cut down to seconds: who sees which half, and that the result loads."""

from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from engine.datasets.fashion_mnist import CLASS_NAMES, LabeledImages
from engine.models.priors import load_clip, load_prior
from engine.pretraining import assets, card
from engine.pretraining.clip import TowerPair
from engine.pretraining.denoiser import class_tokens as training_tokens
from engine.recipes.load import load_recipe
from engine.stages.augment import class_tokens


@pytest.mark.slow
def test_assets_load_and_each_network_saw_its_half_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = {"private": 10, "public": 20, "test": 30}

    def tiny(split: str, _root: Path | None) -> LabeledImages:
        images = torch.full((130, 3, 32, 32), levels[split], dtype=torch.uint8)
        return LabeledImages(images, torch.arange(130) % 10)

    seen: dict[str, int] = {}
    for name in ("train_teacher", "train_clip", "train_autoencoder", "train_denoiser"):
        train = partial(getattr(assets, name), epochs=1)

        def watched(*args, name: str = name, train=train, **kwargs):
            data = next(arg for arg in args if isinstance(arg, LabeledImages))
            seen[name] = int(data.images.unique())
            return train(*args, **kwargs)

        monkeypatch.setattr(assets, name, watched)
    monkeypatch.setattr(assets, "load", tiny)
    monkeypatch.setattr(card, "load", tiny)
    out = tmp_path / "assets"
    assets.make_assets(out, tmp_path / "work", None, Accelerator(cpu=True, mixed_precision="no"), seed=0)
    assert seen.pop("train_teacher") == levels["private"]
    assert set(seen.values()) == {levels["public"]}
    assert len(seen) == 3
    clip = load_clip(f"local-dir:{out / 'open_clip'}", None, "cpu")
    prior = load_prior(str(out / "image-variation"), "cpu")
    assert prior.latent_shape == (8, 8, 8)
    assert prior.image_shape == (32, 32)
    assert clip.embed_images(tiny("test", None).images[:2]).shape == (2, 64)
    assert "top-1" in (out / "README.md").read_text()


def test_the_denoiser_learns_from_the_tokens_that_augment_gives_it() -> None:
    torch.manual_seed(0)
    pair = TowerPair().eval()
    clip = load_clip(load_recipe("fashion-mnist").filter.model, None, "cpu")
    pair.open_clip.load_state_dict(clip.network.state_dict(), strict=False)
    theirs = class_tokens(clip, CLASS_NAMES, cross_attention_dim=64)
    torch.testing.assert_close(training_tokens(pair), theirs, rtol=1e-4, atol=1e-4)
