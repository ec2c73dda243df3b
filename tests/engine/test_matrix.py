"""Teachers of timm, torchvision and Hugging Face: their statistics, their feature maps, a run of all stages.

A third of the networks is tested by default. `make matrix` tests all, each in its own process, and sets
MATRIX to the file to which their CPU seconds and peak memory go.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision
import transformers
import yaml
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from engine.cli.main import main
from engine.config.classifier import ClassifierConfig
from engine.models.classifier import Classifier
from engine.models.features import FeatureLayout
from engine.models.inverting import choose_statistics
from engine.models.loading import load_classifier
from engine.run import command
from engine.stages.synthesis.statistics import measuring

TABLE = os.environ.get("MATRIX")
CLASSES = 5


class Case(NamedTuple):
    """A network, the smallest images it is tested on, and what its architecture says."""

    name: str
    size: int | tuple[int, int]
    path: str
    """Of the last map before pooling."""
    shape: tuple[int, int, int]
    """Channels, height and width of that map."""
    order: str = "nchw"
    """Layout of that map; tokens+2 has two tokens before the patches."""
    statistics: str = "batch_norm"
    in_ci: bool = False


CASES = [
    Case("timm:resnet18", (64, 96), "layer4", (512, 2, 3), in_ci=True),
    Case("timm:resnetv2_50", 64, "norm", (2048, 2, 2)),
    Case("timm:vit_tiny_patch16_224", 32, "norm", (192, 2, 2), "tokens+1", "patch_similarity", in_ci=True),
    Case("timm:deit_tiny_distilled_patch16_224", 32, "norm", (192, 2, 2), "tokens+2", "patch_similarity"),
    Case("timm:swin_tiny_patch4_window7_224", 64, "norm", (768, 2, 2), "nhwc", "patch_similarity"),
    Case("timm:convnext_atto", (64, 96), "stages", (320, 2, 3), statistics="image", in_ci=True),
    Case("timm:nfnet_l0", 64, "final_act", (2304, 2, 2), statistics="image"),
    Case("timm:mixer_s32_224", 64, "norm", (512, 2, 2), "tokens+0", "image"),
    Case("timm:mobilenetv3_small_050", (70, 45), "blocks", (288, 3, 2), in_ci=True),
    Case("timm:efficientnet_lite0", 64, "bn2", (1280, 2, 2)),
    Case("timm:regnetx_002", 64, "s4", (368, 2, 2)),
    Case("timm:densenet121", 64, "features", (1024, 2, 2)),
    Case("timm:inception_v3", 128, "Mixed_7c", (2048, 2, 2)),
    Case("timm:xception41", 64, "blocks", (2048, 2, 2)),
    Case("timm:hrnet_w18_small", 64, "final_layer", (2048, 2, 2)),
    Case("timm:dla34", 64, "level5", (512, 2, 2)),
    Case("timm:ghostnet_050", 64, "blocks", (480, 2, 2)),
    Case("timm:mobilevit_xxs", 64, "final_conv", (320, 2, 2)),
    Case("timm:poolformer_s12", 64, "stages", (512, 2, 2), statistics="image"),
    Case("timm:pvt_v2_b0", 64, "stages", (256, 2, 2), statistics="patch_similarity", in_ci=True),
    Case("timm:levit_128s", 224, "stages", (384, 4, 4), "tokens+0"),
    Case("timm:cait_xxs24_224", 32, "norm", (192, 2, 2), "tokens+1", "patch_similarity"),
    Case("timm:xcit_nano_12_p16_224", 32, "norm", (128, 2, 2), "tokens+1"),
    Case("timm:edgenext_xx_small", 64, "stages", (168, 2, 2), statistics="image", in_ci=True),
    Case("timm:fastvit_t8", 64, "final_conv", (768, 2, 2)),
    Case("timm:mambaout_femto", 64, "stages", (288, 2, 2), "nhwc", "image", in_ci=True),
    Case("timm:efficientvit_b0", 64, "stages", (128, 2, 2), in_ci=True),
    Case("torchvision:alexnet", 96, "features", (256, 2, 2), statistics="image"),
    Case("torchvision:densenet121", 64, "features", (1024, 2, 2)),
    Case("torchvision:googlenet", 64, "inception5b", (1024, 2, 2)),
    Case("torchvision:inception_v3", 299, "Mixed_7c", (2048, 8, 8)),
    Case("torchvision:mnasnet0_5", 64, "layers", (1280, 2, 2), in_ci=True),
    Case("torchvision:mobilenet_v2", 64, "features", (1280, 2, 2)),
    Case("torchvision:regnet_y_400mf", 64, "trunk_output", (440, 2, 2)),
    Case("torchvision:resnet18", 64, "layer4", (512, 2, 2)),
    Case("torchvision:shufflenet_v2_x0_5", 64, "conv5", (1024, 2, 2), in_ci=True),
    Case("torchvision:squeezenet1_1", 64, "features", (512, 3, 3), statistics="image", in_ci=True),
    Case("torchvision:swin_t", (64, 96), "permute", (768, 2, 3), statistics="patch_similarity"),
    Case("hf:ViT", 64, "vit.layernorm", (32, 4, 4), "tokens+1", "patch_similarity", in_ci=True),
    Case("hf:DeiT", 64, "deit.layernorm", (32, 4, 4), "tokens+2", "patch_similarity"),
    Case("hf:Beit", 64, "beit.layers.1", (32, 4, 4), "tokens+1", "patch_similarity", in_ci=True),
    Case("hf:ResNet", 64, "resnet.encoder.stages.3", (32, 2, 2), in_ci=True),
    Case("hf:ConvNext", 64, "convnext.encoder.stages.3", (32, 2, 2), statistics="image"),
    Case("hf:Swin", 64, "swin.layernorm", (16, 8, 8), "tokens+0", "patch_similarity", in_ci=True),
    Case("hf:MobileNetV2", 64, "mobilenet_v2.conv_1x1", (1280, 2, 2)),
    Case("hf:RegNet", 64, "regnet.encoder.stages.3", (32, 2, 2), in_ci=True),
]
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
HF_SETTINGS: dict[str, dict[str, Any]] = {
    "ViT": TRANSFORMER,
    "DeiT": TRANSFORMER,
    "Beit": TRANSFORMER,
    "ResNet": STAGES,
    "ConvNext": {"hidden_sizes": STAGES["hidden_sizes"], "depths": STAGES["depths"]},
    "Swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "MobileNetV2": {"depth_multiplier": 0.25},
    "RegNet": {**STAGES, "groups_width": 8},
}
"""Settings of Hugging Face's architectures that make them small."""


@pytest.mark.parametrize("case", [c for c in CASES if TABLE or c.in_ci], ids=lambda case: case.name)
def test_a_teacher_of_the_matrix(case: Case, tmp_path: Path) -> None:
    seconds, gigabytes = _in_child(lambda: _check(case, tmp_path), tmp_path / "traceback.txt")
    if TABLE:
        c, h, w = case.shape
        row = f"{case.name:40} {case.path:26} {f'{c}x{h}x{w}':10} {case.order:9} {case.statistics:17}"
        with Path(TABLE).open("a", encoding="utf-8") as file:
            file.write(f"{row} {seconds:5.1f} s {gigabytes:5.2f} GiB\n")


def _in_child(check: Callable[[], None], report: Path) -> tuple[float, float]:
    """Run `check` in a fork of this process. Return its CPU seconds and its peak memory in GiB."""
    pid = os.fork()
    if pid == 0:
        try:
            check()
        except BaseException:
            report.write_text(traceback.format_exc(), encoding="utf-8")
            os._exit(1)
        finally:
            sys.stdout.flush()
        os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, report.read_text(encoding="utf-8") if report.exists() else f"status {status}"
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def _check(case: Case, folder: Path) -> None:
    config = _write_teacher(case, folder)
    teacher = load_classifier(config)
    _check_feature_map(case, teacher, config.size)
    _check_statistics(case, teacher, config.size)
    _check_run(config, folder)


def _write_teacher(case: Case, folder: Path) -> ClassifierConfig:
    """Write the weights of a random network that has seen some noise."""
    torch.manual_seed(0)
    source, _, name = case.name.partition(":")
    network = _hf_network(name, case.size) if source == "hf" else _network(case)
    size = (case.size, case.size) if isinstance(case.size, int) else case.size
    _liven(network, size)
    if isinstance(network, PreTrainedModel):
        network.save_pretrained(folder / name)
        name, weights = f"hf:{folder / name}", folder / name / "model.safetensors"
    else:
        name, weights = case.name, folder / "weights.pth"
        torch.save(network.state_dict(), weights)
    return ClassifierConfig(
        name=name,
        weights=str(weights),
        num_classes=CLASSES,
        in_channels=3,
        image_size=case.size,
        mean=(0.5,),
        std=(0.25,),
    )


def _network(case: Case) -> nn.Module:
    source, _, name = case.name.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if source == "torchvision":
            network: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES)
            return network
        fixed = timm.get_pretrained_cfg(name).fixed_input_size
        return timm.create_model(name, num_classes=CLASSES, **({"img_size": case.size} if fixed else {}))


def _hf_network(name: str, size: Any) -> nn.Module:
    settings = {
        **HF_SETTINGS[name],
        "num_labels": CLASSES,
        "image_size": size,
        "patch_size": 4 if name == "Swin" else 16,
    }
    if name in ("ResNet", "ConvNext", "RegNet", "MobileNetV2"):
        del settings["patch_size"]
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}ForImageClassification")(config)


@torch.no_grad()
def _liven(network: nn.Module, size: tuple[int, int]) -> None:
    """Give the network logits that depend on the image, and running statistics of noise."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.normal_(std=0.02)
    norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    for layer in norms:
        layer.momentum = 1.0
    network.train()(torch.randn(4, 3, *size))


def _check_feature_map(case: Case, teacher: Classifier, size: tuple[int, int]) -> None:
    order, _, prefix = case.order.partition("+")
    channels, *grid = case.shape
    assert teacher.feature_path == f"network.{case.path}"
    assert teacher.feature_layout == FeatureLayout(order, (grid[0], grid[1]), int(prefix or 0))
    _, (feature,) = teacher.with_features(torch.rand(2, 3, *size), [teacher.feature_path])
    assert feature.shape == (2, channels, *grid)


def _check_statistics(case: Case, teacher: Classifier, size: tuple[int, int]) -> None:
    choice = choose_statistics(teacher, None, size)
    assert choice.kind == case.statistics
    assert bool(choice.attention) == (case.statistics == "patch_similarity")
    images = torch.rand(4, 3, *size)
    count, expected = _by_hooks(teacher, images)
    assert len(choice.norms) == count
    if count:
        loss = measuring(teacher, choice)(images)[1]
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def _by_hooks(teacher: Classifier, images: Tensor) -> tuple[int, float]:
    """Return how many BatchNorms run and the sum of their statistics losses, in float64."""
    losses: dict[nn.Module, float] = {}

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)
        d_mean = values.mean(1) - layer.running_mean.double()
        d_var = values.var(1, correction=0) - layer.running_var.double()
        losses[layer] = losses.get(layer, 0.0) + (d_mean.norm() + d_var.norm()).item()

    layers = [layer for layer in teacher.modules() if isinstance(layer, _BatchNorm)]
    handles = [layer.register_forward_pre_hook(measure) for layer in layers]
    teacher(images)
    for handle in handles:
        handle.remove()
    return len(losses), sum(losses.values())


def _check_run(config: ClassifierConfig, folder: Path) -> None:
    """Run two batches through all stages without a prior, with a student of the teacher's architecture."""
    fields = {"name": config.name, "image_size": config.image_size, "mean": [0.5], "std": [0.25]}
    recipe = {
        "class_names": [f"class {index}" for index in range(CLASSES)],
        "compute": {"device": "cpu", "precision": "fp32", "runtime": "torch", "threads": 1},
        "teacher": {**fields, "weights": config.weights, "num_classes": CLASSES},
        "student": fields,
        "schedule": {"init_batches": 0, "rounds": 2, "batches_per_round": 1, "kd_steps": 2},
        "synthesize": {"batch_size": 2, "steps": 1, "latent_dim": 8, "warmup_steps": 1},
        "augment": {"method": "none"},
        "filter": {"method": "none"},
        "feed": {"kind": "torch", "threads": 1},
        "distill": {"batch_size": 4, "lr": 0.001, "w_feature": 1.0},
        "evaluate": {"data": None},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(command, ["--recipe", str(path), "--out", str(folder / "run"), "--quiet"]) == 0
    assert (folder / "run" / "summary.json").is_file()
