"""The filter against rules written out, and the mean distance against a double loop."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.errors import NonFiniteError
from engine.models.classifier import Classifier
from engine.models.priors import PROMPT, ClipModel, load_clip
from engine.runtime.torch import FusedClassifier
from engine.stages.batch import ImageBatch
from engine.stages.filter import (
    FilterConfig,
    FilterResult,
    filter_variations,
    mean_pairwise_distance,
    to_centroids,
    to_parents,
    without_duplicates,
)
from tests.tiny_priors import write_clip

CLASS_NAMES = ("bag", "coat", "ankle boot")
NUM_CLASSES = len(CLASS_NAMES)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return load_clip(f"local-dir:{write_clip(tmp_path_factory.mktemp('clip'))}", None, "cpu")


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, NUM_CLASSES))
    nn.init.normal_(network[2].weight, std=2, generator=torch.Generator().manual_seed(1))
    return Classifier(
        network, num_classes=NUM_CLASSES, in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, feature_path="0"
    )


def _batch(images: Tensor, labels: Tensor, keys: Tensor, parents: Tensor) -> ImageBatch:
    return ImageBatch(images=images, labels=labels, keys=keys, parents=parents, seeds=torch.zeros_like(keys))


@pytest.fixture(scope="module")
def sources() -> ImageBatch:
    images = torch.randint(0, 256, (4, 3, 24, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    keys = torch.tensor([24, 0, 8, 16])  # not in order
    return _batch(images, torch.tensor([0, 1, 2, 0]), keys, torch.full((4,), -1))


@pytest.fixture(scope="module")
def variations(sources: ImageBatch) -> ImageBatch:
    rows = torch.tensor([2, 2, 0, 1, 3, 1, 0, 3, 2, 1])
    draw = torch.Generator().manual_seed(1)
    mix = torch.rand(10, 1, 1, 1, generator=draw)
    other = torch.randint(0, 256, (10, 3, 24, 24), generator=draw)
    images = ((1 - mix) * sources.images[rows] + mix * other).to(torch.uint8)
    images[0] = sources.images[2]
    return _batch(images, sources.labels[rows], torch.arange(10) + 100, sources.keys[rows])


def _cosines(sources: ImageBatch, variations: ImageBatch, clip: ClipModel) -> Tensor:
    """Compute the similarities one pair at a time, in float64 after the tower."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    values = []
    for image, parent in zip(variations.images, variations.parents, strict=True):
        source = sources.images[sources.keys == parent]
        pair = torch.cat([image[None], source]).float() / 255
        a, b = clip.network.encode_image((pair - mean) / std).double()
        values.append(a @ b / (a.norm() * b.norm()))
    return torch.stack(values)


def _filter(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel | None, teacher: Classifier, **changes: Any
) -> FilterResult:
    settings: dict[str, Any] = {"method": "clip", "model": "unused", "class_gate": False} | changes
    forward = FusedClassifier(teacher.eval(), [], Accelerator(cpu=True))
    config = FilterConfig(**settings)
    texts = None
    if clip is not None and config.needs_texts:
        texts = clip.embed_texts([PROMPT.format(name) for name in CLASS_NAMES])
    return filter_variations(sources, variations, clip, texts, forward, config, torch.device("cpu"))


@pytest.mark.parametrize("micro_batch", [1, 3, 256])
def test_similarity_is_the_cosine_to_the_parent(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier, micro_batch: int
) -> None:
    result = _filter(sources, variations, clip, teacher, omega=0.5, micro_batch=micro_batch)
    expected = _cosines(sources, variations, clip)
    assert expected.std() > 1e-3
    torch.testing.assert_close(result.similarity.double(), expected, rtol=0, atol=1e-5)
    assert result.similarity.dtype == torch.float32
    assert result.similarity[0] > 1 - 1e-5


def test_omega_keeps_what_is_at_least_as_similar(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier
) -> None:
    cosines = _cosines(sources, variations, clip).sort().values
    omega = (cosines[3] + cosines[4]).item() / 2
    result = _filter(sources, variations, clip, teacher, omega=omega)
    assert result.kept.sum() == 6
    assert torch.equal(result.kept, _cosines(sources, variations, clip) >= omega)
    assert torch.equal(result.kept, result.passes_clip)


@pytest.mark.parametrize(("quantile", "kept"), [(0.0, 10), (0.25, 7), (0.5, 5), (0.95, 1)])
def test_quantile_drops_that_share(
    sources: ImageBatch,
    variations: ImageBatch,
    clip: ClipModel,
    teacher: Classifier,
    quantile: float,
    kept: int,
) -> None:
    result = _filter(sources, variations, clip, teacher, quantile=quantile)
    least = _cosines(sources, variations, clip).sort(descending=True).values[kept - 1]
    assert torch.equal(result.kept, _cosines(sources, variations, clip) >= least - 1e-6)
    assert result.kept.sum() == kept


def _unit(images: Tensor, clip: ClipModel) -> Tensor:
    """Embed one image at a time, as unit vectors in float64 after the tower."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    vectors = [clip.network.encode_image((image[None].float() / 255 - mean) / std)[0] for image in images]
    return torch.stack([vector.double() / vector.double().norm() for vector in vectors])


def _by_criterion(criterion: str, variations: ImageBatch, clip: ClipModel, top1: Tensor) -> list[float]:
    vectors, labels = _unit(variations.images, clip), variations.labels.tolist()
    texts = [clip.network.encode_text(clip.tokenizer([f"a photo of a {name}."]))[0] for name in CLASS_NAMES]
    names = [text.double() / text.double().norm() for text in texts]
    values = []
    for vector, label in zip(vectors, labels, strict=True):
        to_names = [(vector @ name).item() for name in names]
        own = to_names.pop(label)
        ours = [i for i, other in enumerate(labels) if other == label]
        trusted = [i for i in ours if top1[i] == label] or ours
        mean = sum(vectors[i] for i in trusted) / len(trusted)
        centroid = (vector @ mean / mean.norm()).item()
        values.append({"text": own, "margin": (own - max(to_names)) / 2, "centroid": centroid}[criterion])
    return values


@pytest.mark.parametrize("criterion", ["text", "margin", "centroid"])
def test_similarity_by_the_other_criteria(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier, criterion: str
) -> None:
    result = _filter(sources, variations, clip, teacher, quantile=0.5, criterion=criterion, micro_batch=4)
    expected = torch.tensor(_by_criterion(criterion, variations, clip, result.teacher_top1))
    assert expected.std() > 1e-3
    torch.testing.assert_close(result.similarity, expected, rtol=0, atol=1e-5)
    assert result.similarity.dtype == torch.float32
    assert torch.equal(result.kept, result.similarity > result.similarity.median()), "quantile applies, too"


@pytest.mark.parametrize("criterion", ["text", "margin", "centroid"])
def test_only_the_criterion_source_needs_the_sources(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier, criterion: str
) -> None:
    assert len(_filter(sources[:0], variations, clip, teacher, omega=0.0, criterion=criterion).kept) == 10
    with pytest.raises(ValueError, match="parent is not among"):
        _filter(sources[:1], variations, clip, teacher, omega=0.0)


def test_a_class_that_the_teacher_never_sees_has_a_centroid_of_all() -> None:
    embeddings = nn.functional.normalize(torch.randn(6, 5), dim=1)
    labels = torch.tensor([4, 2, 4, 2, 4, 7])
    agrees = torch.tensor([True, False, False, False, True, False])
    means = {4: embeddings[[0, 4]], 2: embeddings[[1, 3]], 7: embeddings[[5]]}
    centers = torch.stack([means[label].double().mean(0) for label in labels.tolist()])
    expected = torch.cosine_similarity(embeddings.double(), centers)
    torch.testing.assert_close(to_centroids(embeddings, labels, agrees).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.7, 0.95])
def test_quantile_per_class_drops_that_share_of_each(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier, quantile: float
) -> None:
    result = _filter(sources, variations, clip, teacher, quantile=quantile, per_class=True)
    for label in range(NUM_CLASSES):
        of_class = variations.labels == label
        most_similar = result.similarity[of_class].sort(descending=True).values
        # of N sorted values, those below the position quantile * (N - 1) are dropped
        kept = len(most_similar) - math.ceil(quantile * (len(most_similar) - 1))
        assert result.kept[of_class].sum() == kept >= 1
        assert torch.equal(result.kept[of_class], result.similarity[of_class] >= most_similar[kept - 1])


def test_a_quantile_of_the_batch_can_take_a_whole_class(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier
) -> None:
    of_batch = _filter(sources, variations, clip, teacher, quantile=0.95)
    assert len(variations.labels[of_batch.kept].unique()) == 1
    of_class = _filter(sources, variations, clip, teacher, quantile=0.95, per_class=True)
    assert len(variations.labels[of_class.kept].unique()) == NUM_CLASSES


def _greedy(kept: Tensor, vectors: Tensor, labels: Tensor, keys: Tensor, most: float) -> Tensor:
    stays = torch.zeros_like(kept)
    for row in keys.argsort().tolist():
        earlier = [i for i in stays.nonzero()[:, 0].tolist() if labels[i] == labels[row]]
        stays[row] = kept[row] and all((vectors[row] @ vectors[i]).item() <= most for i in earlier)
    return stays


@pytest.mark.parametrize("most", [-0.5, 0.0, 0.3, 0.8, 1.0])
def test_duplicates_are_dropped_greedily(most: float) -> None:
    draw = torch.Generator().manual_seed(5)
    vectors = nn.functional.normalize(torch.randn(60, 3, dtype=torch.float64, generator=draw), dim=1)
    labels, keys = torch.randint(0, 4, (60,), generator=draw), torch.randperm(60, generator=draw)
    kept = torch.rand(60, generator=draw) < 0.8
    before = kept.clone()
    found = without_duplicates(kept, vectors.float(), labels, keys, most)
    assert torch.equal(found, _greedy(kept, vectors, labels, keys, most))
    assert torch.equal(kept, before)
    assert (found.sum() < kept.sum()) == (most < 1)


def test_a_duplicate_is_compared_with_what_stays_only() -> None:
    """Of a chain in which each is close to the next one alone, every second one stays."""
    angles = torch.arange(5) * 0.5
    chain = torch.stack([angles.cos(), angles.sin()], 1)
    every, ones, keys = torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.long), torch.arange(5)
    found = without_duplicates(every, chain, ones, keys, 0.8)
    assert found.tolist() == [True, False, True, False, True]
    assert without_duplicates(every, chain, ones, keys.flip(0), 0.8).tolist() == found.tolist()[::-1]
    without_first = every & (keys > 0)
    assert without_duplicates(without_first, chain, ones, keys, 0.8).tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_rounding_makes_no_duplicates_at_most_1() -> None:
    once = nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    twice, keys = torch.cat([once, once]), torch.arange(100)
    assert (twice @ twice.T).max() > 1
    every = torch.ones(100, dtype=torch.bool)
    assert without_duplicates(every, twice, torch.zeros_like(keys), keys, 1.0).all()
    assert without_duplicates(every, twice, torch.zeros_like(keys), keys, 0.9999).sum() == 50


def test_equal_variations_of_a_class_are_kept_once(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier
) -> None:
    twice = ImageBatch.cat([variations, replace(variations, keys=variations.keys - 50)])
    plain = _filter(sources, twice, clip, teacher, quantile=0.5, class_gate=True)
    result = _filter(sources, twice, clip, teacher, quantile=0.5, class_gate=True, max_duplicate=0.99999)
    assert plain.kept[:10].any()
    assert torch.equal(result.kept, plain.kept & (twice.keys < 100))
    assert torch.equal(result.passes_clip, plain.passes_clip), "a duplicate passes CLIP"


def test_parents_are_found_in_any_order() -> None:
    vectors = torch.eye(3)
    found = to_parents(vectors, torch.tensor([5, 9, 5]), vectors, torch.tensor([9, 5, 1]))
    assert found.tolist() == [0, 0, 0]
    assert to_parents(vectors, torch.tensor([9, 5, 1]), vectors, torch.tensor([9, 5, 1])).tolist() == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("criterion", ["source", "text", "margin", "centroid"])
def test_non_finite_embeddings_are_named_with_the_keys(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier, criterion: str
) -> None:
    def broken(pixels: Tensor) -> Tensor:
        return clip.image_tower(pixels).index_fill(0, torch.tensor([1]), math.inf)

    of_inf = replace(clip, image_tower=broken)
    with pytest.raises(
        NonFiniteError, match=r"CLIP embeddings for keys 101, 106; check the weights of filter"
    ):
        _filter(sources, variations, of_inf, teacher, omega=0.0, criterion=criterion, micro_batch=5)


def test_non_finite_similarities_are_named_with_the_keys(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier
) -> None:
    broken = replace(clip, network=nn.Module())
    broken.network.encode_text = lambda tokens: torch.full((len(tokens), 8), math.nan)
    broken = replace(broken, image_tower=lambda pixels: torch.ones(len(pixels), 8))
    with pytest.raises(
        NonFiniteError, match=r"CLIP similarities for keys 100, 101.*check the weights of filter"
    ):
        _filter(sources, variations, broken, teacher, omega=0.0, criterion="margin")


def test_teacher_columns_are_its_softmax_on_all(
    sources: ImageBatch, variations: ImageBatch, teacher: Classifier, clip: ClipModel
) -> None:
    result = _filter(sources, variations, clip, teacher, omega=1.0, micro_batch=4)
    logits = teacher(variations.images.float() / 255).double()
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(result.confidence.double(), expected.amax(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(result.teacher_top1, expected.argmax(1))
    agree = expected.argmax(1) == variations.labels
    assert 0 < agree.sum() < len(agree)
    assert result.label_agreement == pytest.approx(agree.double().mean().item())


def test_class_gate_asks_for_the_label_at_the_confidence(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier
) -> None:
    plain = _filter(sources, variations, clip, teacher, quantile=0.2)
    agree = plain.teacher_top1 == variations.labels
    least = plain.confidence[agree & plain.passes_clip].median().item()
    gated = _filter(sources, variations, clip, teacher, quantile=0.2, class_gate=True, min_confidence=least)
    expected = plain.passes_clip & agree & (plain.confidence >= least)
    assert 0 < expected.sum() < (agree & plain.passes_clip).sum()
    assert torch.equal(gated.kept, expected)
    assert gated.kept_label_agreement == 1.0
    assert gated.label_agreement == plain.label_agreement
    assert torch.equal(gated.passes_clip, plain.passes_clip)


def test_without_clip_all_pass_with_similarity_nan(
    sources: ImageBatch, variations: ImageBatch, teacher: Classifier
) -> None:
    result = _filter(sources, variations, None, teacher, method="none")
    assert result.similarity.isnan().all()
    assert result.kept.all()
    gated = _filter(sources, variations, None, teacher, method="none", class_gate=True)
    assert torch.equal(gated.kept, result.teacher_top1 == variations.labels)


def test_agreement_of_none_kept_is_nan(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, teacher: Classifier
) -> None:
    result = _filter(sources, variations[1:], clip, teacher, omega=1.0)
    assert not result.kept.any()
    assert math.isnan(result.kept_label_agreement)


def test_non_finite_teacher_is_named_with_the_keys(
    sources: ImageBatch, variations: ImageBatch, teacher: Classifier
) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = teacher(images)
            logits[0] = float("nan")
            return logits

    broken = Classifier(Broken(), num_classes=3, in_channels=3, mean=(0.0,), std=(1.0,), feature_path="")
    with pytest.raises(NonFiniteError, match=r"filter.*teacher.*keys 100, 105; check the weights of teacher"):
        _filter(sources, variations, None, broken, method="none", micro_batch=5)


@pytest.mark.parametrize("shape", [(2, 3), (7, 5), (40, 16)], ids=str)
def test_mean_pairwise_distance_is_the_double_loop(shape: tuple[int, int]) -> None:
    vectors = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    total, pairs = 0.0, 0
    for i in range(len(vectors)):
        for j in range(i):
            a, b = vectors[i], vectors[j]
            total += 1 - (a @ b / (a.norm() * b.norm())).item()
            pairs += 1
    assert mean_pairwise_distance(vectors) == pytest.approx(total / pairs, abs=1e-12)


def test_mean_pairwise_distance_of_equal_and_of_too_few() -> None:
    assert mean_pairwise_distance(torch.ones(5, 4)) == pytest.approx(0, abs=1e-12)
    assert math.isnan(mean_pairwise_distance(torch.ones(1, 4)))


def test_without_clip_the_settings_for_it_do_not_matter(
    sources: ImageBatch, variations: ImageBatch, teacher: Classifier
) -> None:
    of_clip = {"criterion": "margin", "quantile": 0.9, "per_class": True, "max_duplicate": 0.0}
    result = _filter(sources, variations, None, teacher, method="none", **of_clip)
    assert result.kept.all()
    gated = _filter(sources, variations, None, teacher, method="none", class_gate=True, **of_clip)
    assert torch.equal(gated.kept, gated.teacher_top1 == variations.labels)
