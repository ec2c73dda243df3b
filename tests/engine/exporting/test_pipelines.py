"""`python -m export` of Stable Diffusion 1.x, 2.x and XL and of a TAESD: the graphs against diffusers."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from engine.cli.main import main
from engine.errors import UserError
from engine.exporting.command import command
from engine.exporting.networks import Networks
from engine.exporting.real_inputs import RealInputs
from engine.models.pipeline_folder import PipelineFolder
from engine.models.text_to_image import load_text_to_image
from engine.recipes.load import load_recipe
from export.networks.unet import added_features, time_features
from tests.tiny_pipelines import NUM_TOKENS, WRITERS, put_tiny_autoencoder
from tests.tiny_recipe import write_recipe

TARGET = "onnxruntime fp32"
SIZES = {"sdxl": (16, 16, 0, 0, 16, 16), "sdxl_refiner": (16, 16, 0, 0, 6)}
PROMPTS = ["a photo of a bag.", "a photo of a coat."]


@pytest.fixture(scope="module", params=WRITERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def prior(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[kind](tmp_path_factory.mktemp("prior") / kind)


def export(recipe: Path, out: Path, *flags: str) -> dict[str, Any]:
    """Export to `out` and return its parity.json."""
    common = ["--recipe", str(recipe), "--out", str(out), "--runtime", "onnxruntime", "--precision", "fp32"]
    assert main(command, [*common, *flags]) == 0
    return json.loads((out / "parity.json").read_text())


def assert_passes(report: dict[str, Any]) -> None:
    for network, targets in report.items():
        assert targets[TARGET]["precision"] == "fp32", network
        parity = targets[TARGET]["parity"][TARGET]
        assert parity.keys() == {"random", "real"}
        for found in parity.values():
            assert found["finite"]
            assert 0 < found["relative_error"] <= 1e-4


def run_graph(out: Path, network: str, **inputs: Tensor) -> Tensor:
    (entry,) = out.glob(f"{network}-onnx-fp32-*")
    session = onnxruntime.InferenceSession(entry / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(found)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert wanted.std() > 0.01, "the reference must not be flat"
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_pipelines_unet_and_vae_are_exported(
    kind: str, prior: Path, recipe: Path, images: Path, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    networks = "unet,vae" if kind == "sd1" else "unet"
    flags = ["--augment.prior", str(prior), "--images", str(images), "--network", networks]
    report = export(recipe, tmp_path, *flags)
    assert report.keys() == ({"unet", "vae_encoder", "vae_decoder"} if "vae" in networks else {"unet"})
    assert_passes(report)

    pipeline = DiffusionPipeline.from_pretrained(prior)
    unet, vae, added = pipeline.unet, pipeline.vae, {}
    inputs = {"latents": drawn(3, 4, 8, 8), "tokens": drawn(3, NUM_TOKENS, unet.config.cross_attention_dim)}
    inputs["time_features"] = time_features(unet, torch.tensor(321))
    if kind in SIZES:
        added = {"text_embeds": drawn(3, 24), "time_ids": torch.tensor([SIZES[kind]] * 3)}
        inputs["added_features"] = added_features(unet, **added)
    wanted = unet(inputs["latents"], 321, inputs["tokens"], added_cond_kwargs=added).sample
    assert_close(run_graph(tmp_path, "unet", **inputs), wanted)
    if "vae" in networks:
        latents = inputs["latents"]
        wanted = (vae.decode(latents / vae.config.scaling_factor).sample + 1) / 2
        assert_close(run_graph(tmp_path, "vae_decoder", latents=latents), wanted)


@torch.no_grad()
def test_real_inputs_equal_what_the_pipeline_gives_its_unet(
    kind: str, prior: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with the first call of the UNet by diffusers' pipeline."""
    from diffusers import DiffusionPipeline, UNet2DConditionModel

    networks = Networks(load_recipe(str(recipe), {"augment.prior": str(prior)}), "onnxruntime", None)
    real = RealInputs([torch.rand(3, 16, 16)] * 2, networks)
    spec = networks.load("unet")
    found = real.inputs(spec, {})

    calls: list[dict[str, Any]] = []
    forward = UNet2DConditionModel.forward

    def record(self: Any, *values: Any, **options: Any) -> Any:
        calls.append(options)
        return forward(self, *values, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", record)
    pipeline = DiffusionPipeline.from_pretrained(prior)
    pipeline.set_progress_bar_config(disable=True)
    start = {"image": torch.rand(2, 3, 16, 16)} if kind == "sdxl_refiner" else {}
    pipeline(prompt=PROMPTS, num_inference_steps=4, guidance_scale=1.0, output_type="latent", **start)
    torch.testing.assert_close(found["tokens"], calls[0]["encoder_hidden_states"])
    assert (found["tokens"][0] - found["tokens"][1]).norm() > 0.1
    if kind in SIZES:
        given = calls[0]["added_cond_kwargs"]
        assert given["time_ids"].tolist() == [list(SIZES[kind])] * 2
        torch.testing.assert_close(found["added_features"], added_features(pipeline.unet, **given))


@torch.no_grad()
def test_a_tiny_autoencoder_is_exported(recipe: Path, images: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    put_tiny_autoencoder(write_recipe(tmp_path / "recipe").parent / "prior")
    prior = tmp_path / "recipe" / "prior"
    flags = ["--augment.prior", str(prior), "--images", str(images), "--network", "vae"]
    report = export(recipe, tmp_path / "out", *flags)
    assert report.keys() == {"vae_encoder", "vae_decoder"}
    assert_passes(report)
    vae = AutoencoderTiny.from_pretrained(prior / "vae")
    latents, pixels = drawn(3, 4, 8, 8), drawn(3, 3, 16, 16).sigmoid()
    scale = vae.config.scaling_factor
    assert scale == 0.5
    wanted = (vae.decode(latents / scale).sample + 1) / 2
    assert_close(run_graph(tmp_path / "out", "vae_decoder", latents=latents), wanted)
    wanted = vae.encode(pixels * 2 - 1).latents * scale
    assert_close(run_graph(tmp_path / "out", "vae_encoder", images=pixels), wanted)


@pytest.mark.parametrize("conditioned_by", ["text", "nothing"])
def test_clip_is_exported_without_a_prior_that_has_an_image_encoder(
    conditioned_by: str, recipe: Path, tmp_path: Path
) -> None:
    flags = ["--augment.method", "none", "--augment.prior", ""]
    if conditioned_by == "text":
        flags = ["--augment.prior", str(WRITERS["sd1"](tmp_path / "prior"))]
    assert export(recipe, tmp_path / "out", "--network", "clip", *flags).keys() == {"clip"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cross_attention_dim": 99}, "cross_attention_dim is 99, but hidden_size in text_encoder"),
        ({"in_channels": 9}, "in_channels is 9, out_channels 4"),
        ({"sample_size": None}, "sample_size is None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_unet_that_does_not_fit_is_named(
    prior: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = shutil.copytree(prior, tmp_path / "odd")
    file = folder / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=rf"augment.prior: .*/unet/config.json: {words}"):
        load_text_to_image(PipelineFolder.open(str(folder)), "cpu", parts=())
