"""Decide which variations to keep, by their CLIP embeddings and the teacher's prediction."""

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
    similarity: Tensor  # float32 [V], by the criterion; NaN without CLIP
    passes_clip: Tensor  # bool [V], whether the similarity is high enough
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
    class_texts: Tensor | None,
    teacher: Executable,
    config: FilterConfig,
    device: torch.device,
    micro_batch: MicroBatch | None = None,
    precision: str = "fp32",
) -> FilterResult:
    """Decide which variations to keep.

    A variation passes CLIP if its similarity by `config.criterion` is at least `config.omega`, or at least
    the `config.quantile` of the similarities of this batch or, with `config.per_class`, of its class in this
    batch. With `config.class_gate`, the teacher must also predict its label, with a probability of at least
    `config.min_confidence`. With CLIP and `config.max_duplicate`, what is left goes through
    `without_duplicates`.

    Args:
        sources: must include the parent of every variation for the criterion source; each is embedded once.
        clip: may be None if `config.method` is none.
        class_texts: unit embeddings of the prompts of the class names, float32 [C, D] on the CPU; may be None
            unless `config.needs_texts`.
        micro_batch: by default one of the configured size.
        precision: of the networks, for the advice in errors.

    Raises:
        NonFiniteError: if a probability, an embedding or a similarity is NaN or Inf; the message lists the
            keys.
        OutOfMemoryError: if a single image does not fit in memory.
    """
    micro_batch = micro_batch or MicroBatch("filter", config.images_at_once)
    top1, confidence = classify(variations.images, teacher, micro_batch, device)
    _require_finite(confidence, variations.keys, "teacher probabilities", "teacher.weights", precision)
    agrees = top1 == variations.labels
    similarity = torch.full((len(variations),), math.nan)
    passes_clip = torch.ones(len(variations), dtype=torch.bool)
    embeddings = None
    if config.method == "clip":
        assert clip is not None, "method clip needs a ClipModel"
        embeddings = embed(variations.images, clip, micro_batch)
        _require_finite(embeddings.sum(1), variations.keys, "CLIP embeddings", "filter.model", precision)
        if config.criterion == "source":
            of_sources = embed(sources.images, clip, micro_batch)
            similarity = to_parents(embeddings, variations.parents, of_sources, sources.keys)
        elif config.criterion == "centroid":
            similarity = to_centroids(embeddings, variations.labels, agrees)
        else:
            assert class_texts is not None, f"criterion {config.criterion} needs texts"
            similarity = to_texts(
                embeddings, variations.labels, class_texts, less_others=config.criterion == "margin"
            )
        _require_finite(similarity, variations.keys, "CLIP similarities", "filter.model", precision)
        passes_clip = similarity >= _threshold(similarity, variations.labels, config)
    kept = passes_clip
    if config.class_gate:
        kept = kept & agrees & (confidence >= config.min_confidence)
    if embeddings is not None and config.max_duplicate is not None:
        kept = without_duplicates(kept, embeddings, variations.labels, variations.keys, config.max_duplicate)
    return FilterResult(
        labels=variations.labels,
        similarity=similarity,
        passes_clip=passes_clip,
        teacher_top1=top1,
        confidence=confidence,
        kept=kept,
    )


def embed(images: Tensor, clip: ClipModel, micro_batch: MicroBatch) -> Tensor:
    """Return the unit embeddings of uint8 RGB [B, 3, H, W], float32 [B, D] on the CPU."""
    return _in_chunks(clip.embed_images, images, micro_batch)


def to_parents(embeddings: Tensor, parents: Tensor, of_sources: Tensor, keys: Tensor) -> Tensor:
    """Return the cosine of each variation and its source, float32 [V].

    Args:
        embeddings: unit vectors of the variations, float32 [V, D].
        parents: key of each variation's source, int64 [V].
        of_sources: unit vectors of the sources, float32 [S, D].
        keys: of the sources, int64 [S], in any order.

    Raises:
        ValueError: if a parent is not among the keys.
    """
    keys, order = keys.sort()
    position = torch.searchsorted(keys, parents).clamp(max=len(keys) - 1)
    if not torch.equal(keys[position], parents):
        raise ValueError("a variation's parent is not among the sources")
    return (embeddings * of_sources[order[position]]).sum(1)


def to_texts(embeddings: Tensor, labels: Tensor, class_texts: Tensor, *, less_others: bool) -> Tensor:
    """Return the cosine of each of V unit vectors [V, D] and the text of its label, float32 [V].

    With `less_others`, return half of that cosine less the largest one to the text of another class.
    `class_texts` are unit vectors [C, D], of at least two classes.
    """
    cosines = embeddings @ class_texts.T
    own = cosines.gather(1, labels[:, None])
    if not less_others:
        return own[:, 0]
    return (own[:, 0] - cosines.scatter(1, labels[:, None], -math.inf).amax(1)) / 2


def to_centroids(embeddings: Tensor, labels: Tensor, agrees: Tensor) -> Tensor:
    """Return the cosine of each of V unit vectors [V, D] and the centroid of its label, float32 [V].

    A centroid is the normalized mean of the vectors of that label that `agrees`, bool [V], marks, or of all
    of them if it marks none.
    """
    classes, rows = labels.unique(return_inverse=True)
    marked = rows[agrees].bincount(minlength=len(classes))
    members = agrees | (marked[rows] == 0)
    sums = embeddings.new_zeros(len(classes), embeddings.shape[1])
    sums.index_add_(0, rows[members], embeddings[members])
    return (embeddings * F.normalize(sums, dim=1)[rows]).sum(1)


def without_duplicates(
    kept: Tensor, embeddings: Tensor, labels: Tensor, keys: Tensor, max_cosine: float
) -> Tensor:
    """Return `kept`, bool [V], without duplicates.

    In ascending order of the keys, a vector is dropped if its cosine to one that stays and has the same label
    is above `max_cosine`. Rows that are not in `kept` count for nothing.

    Args:
        embeddings: unit vectors, float32 [V, D].
        labels: int64 [V].
        keys: int64 [V], unique.
    """
    stays = kept.clone()
    for label in labels[kept].unique():
        rows = (kept & (labels == label)).nonzero()[:, 0]
        rows = rows[keys[rows].argsort()]
        cosines = embeddings[rows] @ embeddings[rows].T
        is_close = cosines.clamp(max=1) > max_cosine  # rounding must not make a cosine exceed 1
        for position, row in enumerate(rows.tolist()):
            if stays[row]:
                later = rows[position + 1 :]
                stays[later] &= ~is_close[position, position + 1 :]
    return stays


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


def _threshold(similarity: Tensor, labels: Tensor, config: FilterConfig) -> Tensor | float:
    """Return the least similarity that passes: one for all, or one for each, float32 [V]."""
    if config.omega is not None:
        return config.omega
    assert config.quantile is not None
    if not config.per_class:
        return torch.quantile(similarity, config.quantile).item()
    thresholds = torch.empty_like(similarity)
    for label in labels.unique():
        of_class = labels == label
        thresholds[of_class] = torch.quantile(similarity[of_class], config.quantile)
    return thresholds


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
