"""Each network of the loop, as a spec and as a graph, against the library it comes from."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.networks.axes import BATCHES, batch, resolution
from export.networks.classifier import classifier_spec
from export.networks.clip import clip_vision_spec, open_clip_spec
from export.networks.unet import added_features, time_features, unet_spec
from export.networks.vae import latent_factor, vae_decoder_spec, vae_encoder_spec
from export.onnx import FILE, write_onnx
from export.spec import Axis, NetworkSpec, Precision
from tests.tiny_priors import CLIP_SIZE, write_clip

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
TOLERANCE = {"torch": 2e-6, "fp32": 1e-4, "fp16": 2e-2}
SIDES = [{"height": 8, "width": 8}, {"height": 4, "width": 12}, {"height": 12, "width": 6}]
"""Of latents; images have twice as many pixels."""


@dataclass(frozen=True, kw_only=True)
class Case:
    spec: NetworkSpec
    original: nn.Module
    wanted: Callable[..., tuple[Tensor, ...]]
    """What the library computes from the inputs of the spec."""


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    """A module in eval mode whose biases and gains are not the zeros and ones that they start with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make().eval()
        for weight in module.parameters():
            if weight.ndim < 2:
                weight.data += 0.1 * torch.randn_like(weight)
    return module


def normalized(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def open_clip_tower(folder: Path) -> Case:
    import open_clip

    model = open_clip.create_model(f"local-dir:{write_clip(folder)}").eval()
    spec = open_clip_spec(model.visual, mean=MEAN, std=STD, size=(CLIP_SIZE, CLIP_SIZE))
    return Case(
        spec=spec,
        original=model,
        wanted=lambda images: (model.encode_image(normalized(images)),),
    )


def clip_vision(_: Path) -> Case:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=12,
    )
    model = seeded(lambda: CLIPVisionModelWithProjection(config))
    return Case(
        spec=clip_vision_spec(model, mean=MEAN, std=STD, size=(16, 16)),
        original=model,
        wanted=lambda images: (model(pixel_values=normalized(images)).image_embeds,),
    )


@cache
def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.25,
        )
    )


@cache
def tiny_autoencoder() -> Any:
    from diffusers import AutoencoderTiny

    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return seeded(lambda: AutoencoderTiny(**blocks, **channels, scaling_factor=0.5))


def vae_encoder(_: Path) -> Case:
    vae = autoencoder()

    def wanted(images: Tensor) -> tuple[Tensor, ...]:
        return (vae.encode(2 * images - 1).latent_dist.mean * 0.25,)

    return Case(spec=vae_encoder_spec(vae, image_shape=(16, 16)), original=vae, wanted=wanted)


def vae_decoder(_: Path) -> Case:
    vae = autoencoder()

    def wanted(latents: Tensor) -> tuple[Tensor, ...]:
        return ((vae.decode(latents / 0.25).sample + 1) / 2,)

    return Case(spec=vae_decoder_spec(vae, latent_shape=(4, 8, 8)), original=vae, wanted=wanted)


def tiny_encoder(_: Path) -> Case:
    vae = tiny_autoencoder()

    def wanted(images: Tensor) -> tuple[Tensor, ...]:
        return (vae.encode(2 * images - 1).latents * 0.5,)

    return Case(spec=vae_encoder_spec(vae, image_shape=(16, 16)), original=vae, wanted=wanted)


def tiny_decoder(_: Path) -> Case:
    vae = tiny_autoencoder()

    def wanted(latents: Tensor) -> tuple[Tensor, ...]:
        return ((vae.decode(latents / 0.5).sample + 1) / 2,)

    return Case(spec=vae_decoder_spec(vae, latent_shape=(4, 8, 8)), original=vae, wanted=wanted)


def make_unet(**settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    fields: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": None,
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
    }
    unet = seeded(lambda: UNet2DConditionModel(**(fields | settings)))
    for name, weight in unet.named_parameters():
        if "attn2.to_v" in name or "_embedding" in name:  # else tokens and time hardly show
            nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(2))
    return unet


@cache
def sd_unet() -> Any:
    return make_unet()


@cache
def sdxl_unet() -> Any:
    return make_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=10 + 6 * 4,
        use_linear_projection=True,
    )


def plain_unet(_: Path) -> Case:
    """At timestep 500, whatever time_features say."""
    unet = sd_unet()

    def wanted(latents: Tensor, _: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        return (unet(latents, 500, tokens).sample,)

    return Case(spec=unet_spec(unet, num_tokens=3), original=unet, wanted=wanted)


def sized_unet(_: Path) -> Case:
    """SDXL's, at timestep 500 and with the sizes and text embeddings of `added`."""
    unet = sdxl_unet()

    def wanted(latents: Tensor, _: Tensor, tokens: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        text_embeds, time_ids = added(len(features))
        given = {"text_embeds": text_embeds, "time_ids": time_ids}
        return (unet(latents, 500, tokens, added_cond_kwargs=given).sample,)

    return Case(spec=unet_spec(unet, num_tokens=3), original=unet, wanted=wanted)


def added(rows: int) -> tuple[Tensor, Tensor]:
    """Text embeddings [B, 10] and the six sizes, [B, 6], of SDXL."""
    draw = torch.Generator().manual_seed(3)
    sizes = torch.randint(0, 1024, (rows, 6), generator=draw)
    return torch.randn(rows, 10, generator=draw), sizes


class Taps(nn.Module):
    """A classifier that returns two feature maps beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = torch.relu(self.norm(self.first(images)))
        high = torch.relu(self.second(low))
        return self.head(high.mean((2, 3))), low, high


def classifier(_: Path) -> Case:
    model = seeded(Taps)
    spec = classifier_spec("teacher", model, image_size=12, features=("low", "high"))

    def wanted(images: Tensor) -> tuple[Tensor, ...]:
        low = model.norm(model.first(images)).relu()
        high = model.second(low).relu()
        return model.head(high.flatten(2).mean(2)), low, high

    return Case(spec=spec, original=model, wanted=wanted)


NETWORKS = {
    make.__name__: make
    for make in (
        open_clip_tower,
        clip_vision,
        vae_encoder,
        vae_decoder,
        tiny_encoder,
        tiny_decoder,
        plain_unet,
        sized_unet,
        classifier,
    )
}

GRAPHS = {
    "open_clip_tower": "fp32",
    "clip_vision": "fp16",
    "vae_encoder": "fp32",
    "vae_decoder": "fp16",
    "tiny_encoder": "fp16",
    "tiny_decoder": "fp32",
    "plain_unet": "fp32",
    "sized_unet": "fp16",
    "classifier": "fp16",
}
"""Of each pair of similar networks one in each precision: an export takes seconds."""


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return NETWORKS[request.param](tmp_path_factory.mktemp("case") / request.param)


def draws(case: Case, rows: int, sides: dict[str, int]) -> dict[str, Tensor]:
    """Inputs of the spec, with the sinusoids of real timesteps and sizes."""
    factor = 2 if "images" in (given.name for given in case.spec.inputs) else 1
    sizes = {"batch": rows} | {name: factor * size for name, size in sides.items()}
    inputs = case.spec.example(sizes, seed=rows)
    if "time_features" in inputs:
        inputs["time_features"] = time_features(case.original, torch.tensor(500))
    if "added_features" in inputs:
        inputs["added_features"] = added_features(case.original, *added(rows))
    return inputs


def relative_error(given: Tensor, wanted: Tensor) -> float:
    assert given.shape == wanted.shape
    assert given.dtype == torch.float32
    assert wanted.norm() > 0.1
    return ((given - wanted).norm() / wanted.norm()).item()


def assert_close(given: Any, wanted: Any, tolerance: float) -> None:
    for one, other in zip(given, wanted, strict=True):
        assert relative_error(one, other) <= tolerance


@torch.no_grad()
def test_a_spec_computes_what_the_library_does_and_leaves_its_module_as_it_was(case: Case) -> None:
    for sides in SIDES:
        inputs = draws(case, 3, sides)
        wanted = case.wanted(*inputs.values())
        assert_close(case.spec.module(*inputs.values()), wanted, TOLERANCE["torch"])
        assert all(torch.equal(*pair) for pair in zip(case.wanted(*inputs.values()), wanted, strict=True))
    assert len(case.spec.outputs) == len(wanted)
    assert not case.spec.module.training


def test_samples_are_the_first_axis_of_every_output(case: Case) -> None:
    inputs = draws(case, 3, SIDES[0])
    with torch.no_grad():
        whole = case.spec.module(*inputs.values())
        last = {name: x[2:] if len(x) == 3 else x for name, x in inputs.items()}
        assert_close(case.spec.module(*last.values()), [output[2:] for output in whole], 1e-5)


@torch.no_grad()
def test_a_spec_computes_nearly_the_same_in_half_precision(case: Case) -> None:
    inputs = draws(case, 3, SIDES[1]).values()
    half = copy.deepcopy(case.spec.module).half()
    found = half(*(value.half() for value in inputs))
    assert {output.dtype for output in found} == {torch.float16}
    assert_close([output.float() for output in found], case.wanted(*inputs), TOLERANCE["fp16"])


@pytest.mark.parametrize(("case", "precision"), GRAPHS.items(), indirect=["case"])
def test_a_graph_computes_what_the_library_does(case: Case, precision: Precision, tmp_path: Path) -> None:
    held = {name: tensor.clone() for name, tensor in case.original.state_dict().items()}
    write_onnx(case.spec, precision, tmp_path)
    assert all(torch.equal(tensor, held[name]) for name, tensor in case.original.state_dict().items())
    session = onnxruntime.InferenceSession(tmp_path / FILE, providers=["CPUExecutionProvider"])
    for rows, sides in ((1, SIDES[0]), (5, SIDES[1]), (70, SIDES[2])):  # diffusers has a branch at 64
        inputs = draws(case, rows, sides)
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            wanted = case.wanted(*inputs.values())
        assert_close(map(torch.from_numpy, found), wanted, TOLERANCE[precision])
    assert [output.name for output in session.get_outputs()] == list(case.spec.outputs)


@pytest.mark.parametrize("timestep", [0, 1, 999, 0.25, 499.5, 998.75])
@torch.no_grad()
def test_time_features_stand_for_a_timestep(timestep: float) -> None:
    unet, spec = sd_unet(), unet_spec(sd_unet(), num_tokens=3)
    latents, _, tokens = spec.example({"batch": 3}).values()
    features = time_features(unet, torch.tensor(timestep))
    assert features.dtype == torch.float32
    (found,) = spec.module(latents, features, tokens)
    assert relative_error(found, unet(latents, timestep, tokens).sample) <= TOLERANCE["torch"]
    assert relative_error(found, unet(latents, timestep + 20, tokens).sample) > 1e-2


@torch.no_grad()
def test_added_features_stand_for_text_embeddings_and_sizes() -> None:
    unet, spec = sdxl_unet(), unet_spec(sdxl_unet(), num_tokens=3)
    inputs = spec.example({"batch": 2})
    inputs["time_features"] = time_features(unet, torch.tensor([7]))
    text_embeds, time_ids = added(2)
    given = {"text_embeds": text_embeds, "time_ids": time_ids}

    def wanted(**changed: Tensor) -> Tensor:
        return unet(inputs["latents"], 7, inputs["tokens"], added_cond_kwargs=given | changed).sample

    inputs["added_features"] = added_features(unet, text_embeds, time_ids)
    (found,) = spec.module(*inputs.values())
    assert relative_error(found, wanted()) <= TOLERANCE["torch"]
    assert relative_error(found, wanted(time_ids=time_ids.flip(0))) > 1e-3
    assert relative_error(found, wanted(text_embeds=text_embeds.flip(0))) > 1e-3


@torch.no_grad()
def test_a_spec_of_a_unet_shares_its_weights() -> None:
    unet = make_unet()
    spec = unet_spec(unet, num_tokens=3)
    inputs = spec.example({"batch": 2})
    inputs["time_features"] = time_features(unet, torch.tensor(500))
    unet.conv_out.weight.data *= 2
    found = spec.module(*inputs.values())[0]
    assert relative_error(found, unet(inputs["latents"], 500, inputs["tokens"]).sample) <= TOLERANCE["torch"]
    assert {id(weight) for weight in spec.module.parameters()} == {id(weight) for weight in unet.parameters()}


def shapes(spec: NetworkSpec) -> dict[str, list[str | int]]:
    return {
        given.name: [size.name if isinstance(size, Axis) else size for size in given.shape]
        for given in spec.inputs
    }


def test_doors_have_the_names_and_sizes_of_the_docstrings(tmp_path: Path) -> None:
    found = {name: shapes(make(tmp_path / name).spec) for name, make in NETWORKS.items()}
    images, latents = ["batch", 3, "height", "width"], ["batch", 4, "height", "width"]
    denoiser = {"latents": latents, "time_features": [1, 8], "tokens": ["batch", 3, 12]}
    assert found == {
        "open_clip_tower": {"images": ["batch", 3, 24, 24]},
        "clip_vision": {"images": ["batch", 3, 16, 16]},
        "vae_encoder": {"images": images},
        "vae_decoder": {"latents": latents},
        "tiny_encoder": {"images": images},
        "tiny_decoder": {"latents": latents},
        "plain_unet": denoiser,
        "sized_unet": denoiser | {"added_features": ["batch", 34]},
        "classifier": {"images": ["batch", 3, 12, 12]},
    }


@pytest.mark.parametrize(
    ("native", "multiple", "sizes"),
    [
        (64, 8, (32, 64, 96)),
        (24, 8, (8, 24, 32)),
        (40, 8, (16, 40, 56)),
        (8, 8, (8, 8, 8)),
        (7, 1, (3, 7, 10)),
        (1, 1, (1, 1, 1)),
    ],
)
def test_resolutions_are_multiples_from_half_to_half_more(
    native: int, multiple: int, sizes: tuple[int, int, int]
) -> None:
    axis = resolution("height", native, multiple=multiple)
    assert (axis.min, axis.opt, axis.max) == sizes
    assert (axis.name, axis.multiple) == ("height", multiple)


@pytest.mark.parametrize(("native", "multiple"), [(65, 8), (4, 8), (7, 2)])
def test_a_native_size_that_is_no_multiple_is_refused(native: int, multiple: int) -> None:
    with pytest.raises(ExportError, match=f"{native} is no multiple of {multiple}"):
        resolution("height", native, multiple=multiple)


def test_a_unet_takes_sides_that_halve_to_its_depth() -> None:
    axes = unet_spec(make_unet(sample_size=(8, 16)), num_tokens=3).axes()
    assert axes["height"] == Axis(name="height", min=4, opt=8, max=12, multiple=2)
    assert axes["width"] == Axis(name="width", min=8, opt=16, max=24, multiple=2)
    with pytest.raises(ExportError, match="height: 9 is no multiple of 2"):
        unet_spec(make_unet(sample_size=9), num_tokens=3)


@pytest.mark.parametrize("vae", [autoencoder, tiny_autoencoder], ids=["kl", "tiny"])
def test_a_latent_cell_has_the_pixels_that_the_encoder_makes_one_of(vae: Callable[[], Any]) -> None:
    assert latent_factor(vae()) == 2
    assert vae_encoder_spec(vae(), image_shape=(16, 24)).shapes()["images"] == (
        (1, 3, 8, 12),
        (16, 3, 16, 24),
        (64, 3, 24, 36),
    )
    with pytest.raises(ExportError, match="width: 17 is no multiple of 2"):
        vae_encoder_spec(vae(), image_shape=(16, 17))


def test_batches_are_those_asked_for() -> None:
    assert batch() == Axis(name="batch", min=1, opt=16, max=64)
    assert batch().name in unet_spec(sd_unet(), num_tokens=3).axes()
    assert BATCHES == (1, 16, 64)
    spec = unet_spec(sd_unet(), num_tokens=3, batches=(2, 5, 9))
    assert [shape[0] for shape in spec.shapes()["tokens"]] == [2, 5, 9]
    assert spec.shapes()["time_features"] == ((1, 8),) * 3
