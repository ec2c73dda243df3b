"""PyPI has another package `kernels`: diffusers and transformers must work with ours, with and without it."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import kernels

# What transformers imports from the other package if it accepts the version.
OTHER_INIT = """
from kernels.layer import KernelizeFallback, LayerRepository, LocalLayerRepository, Mode
from kernels.layer import CUDAProperties, Device, ROCMProperties
from .layer import replace_kernel_forward_from_hub, use_kernel_forward_from_hub, use_kernelized_func

def kernelize(model, **kwargs):
    return model

def get_kernel(*args, **kwargs):
    raise OSError("no network")

register_kernel_mapping = use_kernel_mapping = kernelize
"""
OTHER_LAYER = """
class Mode: ...
class Device: ...
class CUDAProperties: ...
class ROCMProperties: ...
class LayerRepository: ...
class LocalLayerRepository: ...
class KernelizeFallback: ...

def replace_kernel_forward_from_hub(cls, name): ...

def use_kernel_forward_from_hub(name):
    return lambda cls: cls

def use_kernelized_func(*functions):
    return lambda cls: cls
"""

USE_BOTH_LIBRARIES = """
import sys
import torch
import kernels
from diffusers import StableDiffusionImageVariationPipeline, UNet2DConditionModel
from diffusers.utils import is_kernels_available as diffusers_sees_kernels
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.integrations import hub_kernels
from transformers.utils import is_kernels_available as transformers_sees_kernels

torch.set_num_threads(1)
clip = CLIPVisionModelWithProjection(CLIPVisionConfig(
    hidden_size=8, intermediate_size=8, projection_dim=8, num_hidden_layers=1, num_attention_heads=1,
    image_size=8, patch_size=4))
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
    attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
with torch.no_grad():
    embeds = clip(torch.ones(2, 3, 8, 8)).image_embeds[:, None]
    sample = unet(torch.ones(2, 4, 8, 8), 1, embeds).sample
assert sample.shape == (2, 4, 8, 8) and sample.isfinite().all()
assert isinstance(kernels.cpu_features(), list)
print(diffusers_sees_kernels(), transformers_sees_kernels())
"""


def write_other_kernels(folder: Path, version: str) -> None:
    layer = folder / "kernels" / "layer"
    layer.mkdir(parents=True)
    (layer / "__init__.py").write_text(OTHER_LAYER)
    (layer.parent / "__init__.py").write_text(OTHER_INIT)
    metadata = folder / f"kernels-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.4\nName: kernels\nVersion: {version}\n")


def run_python(code: str, folder: Path) -> str:
    """Run `code` outside of the checkout, with `folder` on the module path."""
    environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("version", "accepted"), [("0.17.2", False), ("0.18.2", True)])
def test_diffusers_and_transformers_work_with_both(tmp_path: Path, version: str, accepted: bool) -> None:
    write_other_kernels(tmp_path, version)
    assert run_python(USE_BOTH_LIBRARIES, tmp_path).split() == ["True", str(accepted)]


def test_ours_alone_is_not_mistaken_for_the_other() -> None:
    """All other tests use both libraries without the other package."""
    from diffusers.utils import is_kernels_available as diffusers_sees_kernels
    from transformers.utils import is_kernels_available as transformers_sees_kernels

    assert not diffusers_sees_kernels()
    assert not transformers_sees_kernels()


def test_both_packages_are_importable_by_one_name(tmp_path: Path) -> None:
    write_other_kernels(tmp_path, "0.18.2")
    code = (
        "from kernels import Mode, cpu_features; import kernels.layer as l; print(Mode is l.Mode, l.__file__)"
    )
    same, file = run_python(code, tmp_path).split()
    assert same == "True"
    assert Path(file).is_relative_to(tmp_path)


def test_metadata_without_files_is_no_namesake(tmp_path: Path) -> None:
    metadata = tmp_path / "kernels-0.18.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.4\nName: kernels\nVersion: 0.18.2\n")
    assert run_python("import kernels; print(hasattr(kernels, 'Mode'))", tmp_path).strip() == "False"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'kernels' has no attribute 'no_such_name'"):
        _ = kernels.no_such_name


def test_our_version_is_outside_of_the_range_that_transformers_accepts() -> None:
    from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION

    ours = Version(importlib.metadata.version("dda-engine"))
    assert not Version(KERNELS_MIN_VERSION) <= ours < Version(KERNELS_MAX_VERSION)
