"""The spec of a UNet: its embeddings as inputs, shared weights, sizes of its axes."""

import pytest
import torch
from torch import Tensor

from export.errors import ExportError
from export.networks.unet import added_features, time_features, unet_spec
from export.spec import BATCHES, Axis, batch
from tests.export.networks.cases import TOLERANCE, added, make_unet, relative_error, sd_unet, sdxl_unet


@pytest.mark.parametrize("timestep", [0, 1, 999, 0.25, 499.5, 998.75])
@torch.no_grad()
def test_time_features_replace_a_timestep(timestep: float) -> None:
    unet, spec = sd_unet(), unet_spec(sd_unet(), num_tokens=3)
    latents, _, tokens = spec.example({"batch": 3}).values()
    features = time_features(unet, torch.tensor(timestep))
    assert features.dtype == torch.float32
    (found,) = spec.module(latents, features, tokens)
    assert relative_error(found, unet(latents, timestep, tokens).sample) <= TOLERANCE["torch"]
    assert relative_error(found, unet(latents, timestep + 20, tokens).sample) > 1e-2


@torch.no_grad()
def test_added_features_replace_text_embeddings_and_sizes() -> None:
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


def test_the_sides_of_a_unet_are_divisible_to_its_depth() -> None:
    axes = unet_spec(make_unet(sample_size=(8, 16)), num_tokens=3).axes()
    assert axes["height"] == Axis(name="height", min=4, opt=8, max=12, multiple=2)
    assert axes["width"] == Axis(name="width", min=8, opt=16, max=24, multiple=2)
    with pytest.raises(ExportError, match="height is 9, but the network needs a multiple of 2"):
        unet_spec(make_unet(sample_size=9), num_tokens=3)


def test_batches_are_the_requested_ones() -> None:
    assert batch() == Axis(name="batch", min=1, opt=16, max=64)
    assert batch().name in unet_spec(sd_unet(), num_tokens=3).axes()
    assert BATCHES == (1, 16, 64)
    spec = unet_spec(sd_unet(), num_tokens=3, batches=(2, 5, 9))
    assert [shape[0] for shape in spec.shapes()["tokens"]] == [2, 5, 9]
    assert spec.shapes()["time_features"] == ((1, 8),) * 3
