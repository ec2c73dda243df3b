"""Check that an exported classifier, called as its JSON says, computes what the user's does in torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.config.classifier import ClassifierConfig
from engine.exporting.calling import Run, call
from engine.exporting.sample import Sample
from engine.models.loading import load_classifier
from engine.models.outputs import entry
from export.float32 import exact_float32
from export.parity import Parity, compare
from export.spec import Precision

MIN_TOP1_FP32 = 0.99
"""Below this, classes differ by more than near ties can explain."""
WITH_ALPHA = (2, 4)
GRAY_WEIGHTS = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of calling the exported model."""

    parity: Parity
    top1_agreement: float
    """Share of images with the same class in torch and in the export."""
    images: int
    """Number of images."""
    source: str
    """Origin of the images."""
    contradiction: str | None
    """A statement of the JSON that the classifier's settings contradict."""

    @property
    def passes(self) -> bool:
        is_close = self.parity.precision != "fp32" or self.top1_agreement >= MIN_TOP1_FP32
        return self.parity.passes and is_close and self.contradiction is None

    def __str__(self) -> str:
        if self.contradiction:
            return self.contradiction
        return (
            f"top-1 agreement {self.top1_agreement:.1%} and {self.parity} to torch on {self.images} images "
            f"{self.source}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return self.parity.as_json() | {
            "passes": self.passes,
            "top1_agreement": self.top1_agreement,
            "images": self.images,
            "source": self.source,
        }


def check(
    folder: Path,
    name: str,
    config: ClassifierConfig,
    sample: Sample,
    precision: Precision,
    *,
    threads: int,
    run: Run | None = None,
) -> Check:
    """Compare the model in `folder`, called as `name`.json says, with `config` and its weights in torch.

    `run`: see `engine.exporting.calling.call`.
    """
    about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    given = torch.from_numpy(call(about, folder, sample.images, threads, run))
    wanted = torch_logits(config, sample.images, name)
    return Check(
        parity=compare({"logits": wanted}, {"logits": given}, precision),
        top1_agreement=(given.argmax(1) == wanted.argmax(1)).double().mean().item(),
        images=len(sample.images),
        source=sample.source,
        contradiction=_contradiction(about, config, f"{name}.json"),
    )


@torch.no_grad()
def torch_logits(config: ClassifierConfig, images: NDArray[np.uint8], section: str, rows: int = 32) -> Tensor:
    """Return the network's logits in torch, float32 [N, classes], for RGB images uint8 [N, 3, H, W].

    This function makes the network's input itself, independently of the code that graphs are exported from.
    """
    classifier = load_classifier(config, section)
    pixels = images.astype(np.float64) / 255
    if config.is_grey:
        gray = np.tensordot(pixels, np.asarray(GRAY_WEIGHTS), (1, 0))
        pixels = gray[:, None]
    if config.channels in WITH_ALPHA:
        pixels = np.concatenate([pixels, np.ones_like(pixels[:, :1])], 1)
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in config.normalization)
    normalized = torch.from_numpy((pixels - mean) / std).float()
    with exact_float32():
        outputs = [classifier.network(batch) for batch in normalized.split(rows)]
        return torch.cat([entry(output, classifier.output) for output in outputs])


def _contradiction(about: Mapping[str, Any], config: ClassifierConfig, name: str) -> str | None:
    """Return a contradiction in what a caller does not use while the normalization is inside the model."""
    for field, values in zip(("mean", "std"), config.normalization, strict=True):
        stated = about["normalization"][field]
        given = list(values) * (config.channels // len(values))
        if stated != given:
            return f"{name} says {field} {stated}, but the classifier has {given}"
    size = [about["input"]["height"], about["input"]["width"]]
    if size != list(config.size):
        return f"{name} says {size[0]}x{size[1]} pixels, but the classifier has {config.size_text}"
    classes = len(about["output"]["classes"])
    if classes != config.num_classes:
        return f"{name} lists {classes} classes, but the classifier has {config.num_classes}"
    return None
