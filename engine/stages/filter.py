"""Decide which variations to keep, by their CLIP similarity to the source and the teacher's prediction."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config.filter import FilterConfig
from engine.errors import NonFiniteError, more_precision
from engine.models.priors import ClipModel
from engine.runtime.base import Executable
from engine.runtime.micro_batch import MicroBatch
from engine.stages.batch import ImageBatch


@dataclass(frozen=True, kw_only=True)
class FilterResult:
    """Measurements and decision for each of V variations, kept or not; on the CPU."""

    labels: Tensor  # int64 [V], label of the source
    similarity: Tensor  # float32 [V], cosine similarity to the source; NaN without CLIP
    passes_clip: Tensor  # bool [V]
    teacher_top1: Tensor  # int64 [V]
    confidence: Tensor  # float32 [V], teacher's probability of its top-1
    kept: Tensor  # bool [V]

    @property
    def label_agreement(self) -> float:
        """Share of all variations whose label is the teacher's top-1; NaN if there are none."""
        return _mean(self.teacher_top1 == self.labels)

    @property
    def kept_label_agreement(self) -> float:
        """Share of the kept variations whose label is the teacher's top-1; NaN if none is kept."""
        return _mean((self.teacher_top1 == self.labels)[self.kept])


def filter_variations(
    sources: ImageBatch,
    variations: ImageBatch,
    clip: ClipModel | None,
    teacher: Executable,
    config: FilterConfig,
    device: torch.device,
    micro_batch: MicroBatch | None = None,
    precision: str = "fp32",
) -> FilterResult:
    """Decide which variations to keep.

    A variation passes CLIP if its cosine similarity to the source is at least `config.omega`, or at least the
    `config.quantile` of the similarities of this batch. With `config.class_gate`, the teacher must also
    predict its label, with a probability of at least `config.min_confidence`.

    Args:
        sources: must include the parent of every variation; each is embedded once.
        clip: may be None if `config.method` is none.
        micro_batch: by default one of the configured size.
        precision: of the networks, for the advice in errors.

    Raises:
        NonFiniteError: if a probability or similarity is NaN or Inf; the message lists the keys.
        OutOfMemoryError: if a single image does not fit in memory.
    """
    micro_batch = micro_batch or MicroBatch("filter", config.images_at_once)
    top1, confidence = classify(variations.images, teacher, micro_batch, device)
    _require_finite(confidence, variations.keys, "teacher probabilities", "teacher.weights", precision)
    similarity = torch.full((len(variations),), math.nan)
    passes_clip = torch.ones(len(variations), dtype=torch.bool)
    if config.method == "clip":
        assert clip is not None, "method clip needs a ClipModel"
        similarity = similarities(sources, variations, clip, micro_batch)
        _require_finite(similarity, variations.keys, "CLIP similarities", "filter.model", precision)
        passes_clip = similarity >= _threshold(similarity, config)
    kept = passes_clip
    if config.class_gate:
        kept = kept & (top1 == variations.labels) & (confidence >= config.min_confidence)
    return FilterResult(
        labels=variations.labels,
        similarity=similarity,
        passes_clip=passes_clip,
        teacher_top1=top1,
        confidence=confidence,
        kept=kept,
    )


def similarities(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, micro_batch: MicroBatch
) -> Tensor:
    """Return the cosine similarity of each variation and its parent, float32 [V] on the CPU."""
    keys, order = sources.keys.sort()
    position = torch.searchsorted(keys, variations.parents).clamp(max=len(keys) - 1)
    if not torch.equal(keys[position], variations.parents):
        raise ValueError("a variation's parent is not among the sources")
    embed = clip.embed_images
    of_sources = _in_chunks(embed, sources.images, micro_batch)
    of_variations = _in_chunks(embed, variations.images, micro_batch)
    return (of_variations * of_sources[order[position]]).sum(1)


@torch.no_grad()
def classify(
    images: Tensor, teacher: Executable, micro_batch: MicroBatch, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the teacher's top-1, int64 [B], and its probability, float32 [B], for uint8 RGB; on the CPU."""

    def probabilities(chunk: Tensor) -> Tensor:
        pixels = chunk.to(device).to(memory_format=torch.channels_last).float() / 255
        return teacher(images=pixels)["logits"].float().softmax(1)

    confidence, top1 = _in_chunks(probabilities, images, micro_batch).max(1)
    return top1, confidence


def mean_pairwise_distance(embeddings: Tensor) -> float:
    """Return the mean of 1 - cos over all pairs of N embeddings [N, D]; NaN if N < 2.

    Takes O(N D) in float64: the cosines of the pairs sum to (|sum of unit vectors|^2 - N) / 2.
    """
    count = len(embeddings)
    if count < 2:
        return math.nan
    unit = F.normalize(embeddings.double(), dim=1)
    return 1 - ((unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1))).item()


def _in_chunks(function: Callable[[Tensor], Tensor], images: Tensor, micro_batch: MicroBatch) -> Tensor:
    """Apply `function` to micro-batches of images and concatenate the rows, in float32 on the CPU."""
    rows = micro_batch.over(len(images), lambda piece: function(images[piece]).float().cpu())
    return torch.cat(list(rows))


def _threshold(similarity: Tensor, config: FilterConfig) -> float:
    if config.omega is not None:
        return config.omega
    assert config.quantile is not None
    return torch.quantile(similarity, config.quantile).item()


def _require_finite(values: Tensor, keys: Tensor, what: str, of: str, precision: str) -> None:
    broken = keys[~values.isfinite()].tolist()
    if broken:
        names = ", ".join(map(str, broken))
        advice = more_precision(
            precision, "compute.runtime_precision", otherwise=f"check the weights of {of}"
        )
        raise NonFiniteError(f"filter got non-finite {what} for keys {names}; {advice}")


def _mean(mask: Tensor) -> float:
    return mask.double().mean().item()
