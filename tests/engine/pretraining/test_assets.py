"""Making the assets, cut down to seconds: who sees which half, and that the result loads."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from engine.datasets.fashion_mnist import CLASS_NAMES, LabeledImages
from engine.models.loading import load_classifier
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

    seen: dict[str, set[int]] = {}
    brief = {part: (recipe, replace(plan, epochs=1)) for part, (recipe, plan) in assets.TEACHERS.items()}
    monkeypatch.setattr(assets, "TEACHERS", brief)
    for name in ("train_teacher", "train_clip", "train_autoencoder", "train_denoiser"):
        train = getattr(assets, name)
        train = train if name == "train_teacher" else partial(train, epochs=1)

        def watched(*args, name: str = name, train=train, **kwargs):
            data = next(arg for arg in args if isinstance(arg, LabeledImages))
            seen.setdefault(name, set()).update(data.images.unique().tolist())
            return train(*args, **kwargs)

        monkeypatch.setattr(assets, name, watched)
    monkeypatch.setattr(assets, "load", tiny)
    monkeypatch.setattr(card, "load", tiny)
    out = tmp_path / "assets"
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    assets.make_assets(out, tmp_path / "work", None, accelerator, seed=0)
    assert seen.pop("train_teacher") == {levels["private"]}
    assert list(seen.values()) == [{levels["public"]}] * 3
    clip = load_clip(f"local-dir:{out / 'open_clip'}", None, "cpu")
    prior = load_prior(str(out / "image-variation"), "cpu")
    assert prior.latent_shape == (8, 8, 8)
    assert prior.image_shape == (32, 32)
    assert clip.embed_images(tiny("test", None).images[:2]).shape == (2, 64)
    assert (out / "README.md").read_text().count("| top-1") == 2

    others = {path: path.read_bytes() for path in out.rglob("*.safetensors") if path.stem != "lenet-5"}
    (out / "lenet-5.safetensors").unlink()
    assets.make_assets(out, tmp_path / "more", None, accelerator, seed=1, only="lenet-5")
    load_classifier(load_recipe("lenet", {"teacher.weights": str(out / "lenet-5.safetensors")}).teacher)
    assert all(path.read_bytes() == content for path, content in others.items())


def test_the_denoiser_learns_from_the_tokens_that_augment_gives_it() -> None:
    torch.manual_seed(0)
    pair = TowerPair().eval()
    clip = load_clip(load_recipe("fashion-mnist").filter.model, None, "cpu")
    pair.open_clip.load_state_dict(clip.network.state_dict(), strict=False)
    theirs = class_tokens(clip, CLASS_NAMES, cross_attention_dim=64)
    torch.testing.assert_close(training_tokens(pair), theirs, rtol=1e-4, atol=1e-4)
