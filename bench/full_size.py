"""Write random networks of production size in the formats of the real ones, and a recipe that uses them.

They serve `python -m export`, whose graphs, engines and memory depend on sizes, not on weights: an image
variation prior of the size of Stable Diffusion 1.5, CLIP ViT-B/32, and a ResNet-50 teacher.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml
from torch import nn

from bench.random_networks import (
    ENCODER_VIT_L_14,
    UNET_SD_1_5,
    VAE_SD_1_5,
    init_weights,
    open_clip_network,
    uninitialized,
    variation_pipeline,
)

CLASSES, IMAGE_SIZE = 1000, 224
CLIP = "ViT-B-32"
RECIPE = "recipe.yaml"


def write(out: Path) -> Iterator[str]:
    """Write the networks into `out`, and yield a line for each with its size and time."""
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[Path], None]] = {
        "image-variation": write_prior,
        "open_clip": write_clip,
        "teacher.safetensors": write_teacher,
    }
    for name, write_part in parts.items():
        begun = time.monotonic()
        write_part(out / name)
        yield f"{out / name}: {_bytes(out / name) / 1e9:.2f} GB in {time.monotonic() - begun:.1f} s"
    (out / RECIPE).write_text(yaml.safe_dump(recipe(out.resolve()), sort_keys=False), encoding="utf-8")
    yield f"{out / RECIPE}: python -m export --recipe {out / RECIPE} --runtime tensorrt --out DIR"


def write_prior(folder: Path) -> None:
    """Write the prior in fp16, with a DDIM scheduler."""
    pipeline = variation_pipeline(
        UNET_SD_1_5, VAE_SD_1_5, ENCODER_VIT_L_14, scheduler="DDIMScheduler", dtype=torch.float16
    )
    pipeline.save_pretrained(folder)


def write_clip(folder: Path) -> None:
    """Write CLIP in fp16, without a tokenizer: open_clip uses the one in its package."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    network = open_clip_network(CLIP, dtype=torch.float16)
    preprocess = {name: network.visual.preprocess_cfg[name] for name in ("mean", "std", "interpolation")}
    config = {"model_cfg": open_clip.get_model_config(CLIP), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")


def write_teacher(file: Path) -> None:
    """Write a ResNet-50 in fp32, with the running statistics of a new network."""
    from safetensors.torch import save_file

    save_file(resnet_50().state_dict(), file)


def resnet_50() -> nn.Module:
    from torchvision.models import resnet50

    with uninitialized(torch.float32, "cpu"):
        return init_weights(resnet50())


def recipe(folder: Path) -> dict[str, object]:
    """Return a recipe that uses the files in `folder`."""
    classifier = {
        "num_classes": CLASSES,
        "image_size": IMAGE_SIZE,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "feature": "layer4",
    }
    prior = str(folder / "image-variation")
    return {
        "name": "full-size",
        "class_names": [f"class {index}" for index in range(CLASSES)],
        "teacher": {
            "name": "torchvision:resnet50",
            "weights": str(folder / "teacher.safetensors"),
            **classifier,
        },
        "student": {"name": "torchvision:resnet18", **classifier},
        "synthesize": {"batch_size": 32},
        "augment": {
            "prior": prior,
            "scheduler": "ddim",
            "steps": 4,
            "micro_batch": 4,
        },
        "filter": {"model": f"local-dir:{folder / 'open_clip'}", "omega": 0.6, "micro_batch": 16},
        "distill": {"batch_size": 32},
    }


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
