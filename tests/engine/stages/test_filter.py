"""The filter against rules written out, and the mean distance against a double loop."""

import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.errors import NonFiniteError, UserError
from engine.models.classifier import Classifier
from engine.models.priors import ClipModel, load_clip
from engine.runtime.torch import FusedClassifier
from engine.stages.batch import ImageBatch
from engine.stages.filter import FilterConfig, FilterResult, filter_variations, mean_pairwise_distance
from tests.tiny_priors import write_clip

NUM_CLASSES = 3


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
    return filter_variations(
        sources, variations, clip, forward, FilterConfig(**settings), torch.device("cpu")
    )


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"omega": 1.7}, "filter.omega must lie in [-1, 1], got 1.7", id="omega-high"),
        pytest.param({"omega": -1.1}, "filter.omega must lie in [-1, 1], got -1.1", id="omega-low"),
        pytest.param({"omega": math.nan}, "filter.omega must lie in [-1, 1], got nan", id="omega-nan"),
        pytest.param({"quantile": 1.0}, "filter.quantile must lie in [0, 1), got 1.0", id="quantile"),
        pytest.param({}, "filter.omega is None and filter.quantile is None; set one", id="neither"),
        pytest.param({"omega": 0.5, "quantile": 0.5}, "set one and leave the other null", id="both"),
        pytest.param(
            {"omega": 0.5, "min_confidence": 1.0}, "filter.min_confidence must lie", id="confidence"
        ),
        pytest.param(
            {"omega": 0.5, "micro_batch": 0}, "filter.micro_batch must be at least 1", id="micro-batch"
        ),
        pytest.param({"omega": 0.5, "model": ""}, "filter.model is empty", id="model"),
        pytest.param({"method": "clip", "model": ""}, "filter.model is empty", id="clip-without-model"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        FilterConfig(**{"model": "unused"} | change)
    assert message in str(caught.value)
