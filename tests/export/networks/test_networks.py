"""Each network of the loop, as a spec and as a graph, against the library it comes from."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from export.errors import ExportError
from export.networks.unet import added_features, time_features
from export.networks.vae import latent_factor, vae_encoder_spec
from export.onnx import FILE, write_onnx
from export.spec import Axis, NetworkSpec, Precision
from tests.export.networks.cases import (
    NETWORKS,
    SIDES,
    TOLERANCE,
    Case,
    added,
    autoencoder,
    relative_error,
    tiny_autoencoder,
)

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
"""The precision of each network's graph. Of two similar networks, one takes each: an export takes seconds."""


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return NETWORKS[request.param](tmp_path_factory.mktemp("case") / request.param)


def sample_inputs(case: Case, rows: int, sides: dict[str, int]) -> dict[str, Tensor]:
    """Sample inputs of the spec, with the embeddings of real timesteps and sizes."""
    factor = 2 if "images" in (given.name for given in case.spec.inputs) else 1
    sizes = {"batch": rows} | {name: factor * size for name, size in sides.items()}
    inputs = case.spec.example(sizes, seed=rows)
    if "time_features" in inputs:
        inputs["time_features"] = time_features(case.original, torch.tensor(500))
    if "added_features" in inputs:
        inputs["added_features"] = added_features(case.original, *added(rows))
    return inputs


def assert_close(given: Any, wanted: Any, tolerance: float) -> None:
    for one, other in zip(given, wanted, strict=True):
        assert relative_error(one, other) <= tolerance


@torch.no_grad()
def test_a_spec_matches_the_library_and_leaves_its_module_unchanged(case: Case) -> None:
    for sides in SIDES:
        inputs = sample_inputs(case, 3, sides)
        wanted = case.wanted(*inputs.values())
        assert_close(case.spec.module(*inputs.values()), wanted, TOLERANCE["torch"])
        assert all(torch.equal(*pair) for pair in zip(case.wanted(*inputs.values()), wanted, strict=True))
    assert len(case.spec.outputs) == len(wanted)
    assert not case.spec.module.training


def test_samples_are_the_first_axis_of_every_output(case: Case) -> None:
    inputs = sample_inputs(case, 3, SIDES[0])
    with torch.no_grad():
        whole = case.spec.module(*inputs.values())
        last = {name: x[2:] if len(x) == 3 else x for name, x in inputs.items()}
        assert_close(case.spec.module(*last.values()), [output[2:] for output in whole], 1e-5)


@torch.no_grad()
def test_a_spec_computes_nearly_the_same_in_half_precision(case: Case) -> None:
    inputs = sample_inputs(case, 3, SIDES[1]).values()
    half = copy.deepcopy(case.spec.module).half()
    found = half(*(value.half() for value in inputs))
    assert {output.dtype for output in found} == {torch.float16}
    assert_close([output.float() for output in found], case.wanted(*inputs), TOLERANCE["fp16"])


@pytest.mark.parametrize(("case", "precision"), GRAPHS.items(), indirect=["case"])
def test_a_graph_matches_the_library(case: Case, precision: Precision, tmp_path: Path) -> None:
    held = {name: tensor.clone() for name, tensor in case.original.state_dict().items()}
    write_onnx(case.spec, precision, tmp_path)
    assert all(torch.equal(tensor, held[name]) for name, tensor in case.original.state_dict().items())
    session = onnxruntime.InferenceSession(tmp_path / FILE, providers=["CPUExecutionProvider"])
    for rows, sides in ((1, SIDES[0]), (5, SIDES[1]), (70, SIDES[2])):  # diffusers has a branch at 64
        inputs = sample_inputs(case, rows, sides)
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            wanted = case.wanted(*inputs.values())
        assert_close(map(torch.from_numpy, found), wanted, TOLERANCE[precision])
    assert [output.name for output in session.get_outputs()] == list(case.spec.outputs)


def shapes(spec: NetworkSpec) -> dict[str, list[str | int]]:
    return {
        given.name: [size.name if isinstance(size, Axis) else size for size in given.shape]
        for given in spec.inputs
    }


def test_inputs_have_the_names_and_sizes_of_the_docstrings(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("vae", [autoencoder, tiny_autoencoder], ids=["kl", "tiny"])
def test_the_latent_factor_is_the_pixels_per_latent_cell(vae: Callable[[], Any]) -> None:
    assert latent_factor(vae()) == 2
    assert vae_encoder_spec(vae(), image_shape=(16, 24)).shapes()["images"] == (
        (1, 3, 8, 12),
        (16, 3, 16, 24),
        (64, 3, 24, 36),
    )
    with pytest.raises(ExportError, match="width is 17, but the network needs a multiple of 2"):
        vae_encoder_spec(vae(), image_shape=(16, 17))
