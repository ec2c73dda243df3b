"""The stage bench on tiny networks: both sides do the same work, and rows are correct."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import images as bench_images
from bench.machine import Ceiling
from bench.parity import DifferentWorkError, require_alike, require_close
from bench.published.libraries import PublishedSimilarity, PublishedVariations
from bench.random_networks import init_weights
from bench.stages import augment, distill, filter, measure, methods, synthesize, teacher
from bench.stages.case import Case, Ours, Work, flops
from engine.config.compute import ComputeConfig
from engine.config.methods import METHODS, Name
from tests.bench import tiny_networks
from tests.tiny_priors import write_clip

CPU = torch.device("cpu")


def test_sources_and_their_copies_are_valid_batches() -> None:
    of = bench_images.sources(3, 8, variations=2)
    copies = bench_images.noisy_copies(of, 2)
    assert of.keys.tolist() == [0, 3, 6]
    assert copies.parents.tolist() == [0, 0, 3, 3, 6, 6]
    assert copies.keys.tolist() == [1, 2, 4, 5, 7, 8]
    torch.testing.assert_close(bench_images.from_pil(bench_images.to_pil(of.images)), of.images)


def test_variations_of_both_sides_are_the_same_images() -> None:
    pipeline, size = tiny_networks.pipeline(), augment.Size(sources=2, variations=3, steps=2)
    prior = augment.prior_of(pipeline, CPU)
    batch = bench_images.sources(2, 16, variations=3)
    published = PublishedVariations(pipeline=pipeline, copies=3, steps=2, guidance_scale=3.0)
    start = augment.noise(batch, size, prior.latent_shape)
    ours = augment.variations(prior, size, batch, tiny_networks.machine().options)()
    given = bench_images.to_pil(batch.images)
    theirs = bench_images.from_pil(published.batched(given, start))
    assert ours.shape == (6, 3, 16, 16)
    assert theirs.float().std() > 10, "images of one colour would be alike, too"
    assert (ours.int() - theirs.int()).abs().max() <= 1
    alone = bench_images.from_pil(published.batched(given[1:], start[3:]))
    assert (alone.int() - theirs[3:].int()).abs().max() <= 1
    assert len(published.one_by_one(given)) == 6


def test_an_augment_case_with_a_wrong_prior_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    right = augment.prior_of

    def wrong(pipeline: object, device: torch.device) -> object:
        prior = right(pipeline, device)
        init_weights(prior.unet, seed=1)
        return prior

    monkeypatch.setattr(augment, "prior_of", wrong)
    case = augment.case("tiny", tiny_networks.pipeline(), augment.Size(sources=2, variations=2, steps=2), CPU)
    with pytest.raises(DifferentWorkError, match="augment/tiny: cosine"):
        case.open(tiny_networks.machine())


def test_rows_of_an_augment_case(monkeypatch: pytest.MonkeyPatch) -> None:
    size = augment.Size(sources=2, variations=2, steps=2)

    def cases(device: torch.device, _: object) -> list[Case]:
        return [augment.case("tiny", tiny_networks.pipeline(), size, device)]

    monkeypatch.setitem(measure.STAGES, "augment", cases)
    monkeypatch.setattr(measure, "gemm_ceiling", lambda *_: Ceiling(lambda: None, 1e6))
    config = ComputeConfig(device="cpu", precision="fp32", runtime="torch")
    rows = list(measure.rows(["augment"], config, seconds=0.01))
    baselines = ["diffusers as in its README, fp32", "diffusers batched, fp32"]
    assert [row.baseline for row in rows] == [*baselines, *(f"{name}, memory kept" for name in baselines)]
    for row in rows:
        assert (row.case, row.unit, row.dtype) == ("augment/tiny", "img/s", "fp32")
        assert row.shape == "2 x 2, 2 steps, torch"
        assert row.ratio == pytest.approx(row.ours / row.theirs)
        assert row.floor is not None


def test_a_baseline_that_cases_share_is_measured_alone_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    published = {"theirs": Work(call=lambda: called.append("theirs"), amount=1)}
    ours = Ours(work={"case": Work(call=lambda: None, amount=1)}, flops=1.0, dtype="fp32", shape="")
    shared = [Case(published=published, open=lambda _: ours, unit="ms") for _ in range(3)]
    monkeypatch.setitem(measure.STAGES, "methods", lambda *_: shared)
    monkeypatch.setattr(measure, "gemm_ceiling", lambda *_: Ceiling(lambda: None, 1e6))
    alone: list[object] = []
    each = measure._ms_each
    monkeypatch.setattr(measure, "_ms_each", lambda work, *rest: alone.append(work) or each(work, *rest))
    config = ComputeConfig(device="cpu", precision="fp32", runtime="torch")
    rows = list(measure.rows(["methods"], config, seconds=0.001))
    assert alone == [published]
    assert called
    assert [row.baseline for row in rows] == 3 * ["theirs", "theirs, memory kept"]


def test_units_amounts_and_floors_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 images take us 4 ms and them 16 ms; an image has 1e6 operations, 2 ms at the ceiling."""
    times = {"case": 4.0, "theirs": 16.0, "gemm": 2.0}
    monkeypatch.setattr(
        measure, "milliseconds", lambda calls, *_, **__: {name: times[name] for name in calls}
    )
    monkeypatch.setattr(measure, "gemm_ceiling", lambda *_: Ceiling(lambda: None, 1e6))
    work = Work(call=lambda: None, amount=8)
    ours = Ours(work={"case": work}, flops=1e6, dtype="fp32", shape="8")
    for unit, values in {"img/s": (2000, 500, 500), "ms": (0.5, 2, 2)}.items():
        case = Case(published={"theirs": work}, open=lambda _: ours, unit=unit)
        (row,) = measure._rows(case, {}, tiny_networks.machine(), seconds=1)
        assert (row.ours, row.theirs, row.floor) == pytest.approx(values)
        assert row.ratio == pytest.approx(4)


def test_published_calls_run_under_torchs_default_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(measure, "gemm_ceiling", lambda *_: Ceiling(lambda: None, 1e6))
    seen: dict[str, set[bool]] = {"ours": set(), "theirs": set()}

    def work(side: str) -> Work:
        return Work(call=lambda: seen[side].add(torch.backends.cudnn.deterministic), amount=1)

    ours = Ours(work={"case": work("ours")}, flops=1e6, dtype="fp32", shape="")
    case = Case(published={"theirs": work("theirs")}, open=lambda _: ours, unit="ms")
    list(measure._rows(case, {}, tiny_networks.machine(), seconds=0.01))
    assert seen == {"ours": {True}, "theirs": {False}}


@pytest.mark.parametrize("stage", [distill, synthesize])
def test_a_step_has_the_requested_batch_size(stage: Any) -> None:
    opened = []
    for size in (1, 3):
        case = stage.cases(CPU, size)[0]
        (published,) = case.published.values()
        published.call()
        opened.append(case.open(tiny_networks.machine()))
        assert opened[-1].shape.endswith(f"batch {size}")
    assert opened[1].flops == pytest.approx(3 * opened[0].flops, rel=0.05)


def test_a_step_on_stored_outputs_counts_its_share_of_the_teacher() -> None:
    flops = {}
    for case in distill.cases(CPU, 2):
        ours = case.open(tiny_networks.machine())
        ((name, work),) = ours.work.items()
        work.call()
        flops[ours.shape.split(",")[0], name] = ours.flops
    alone = flops["WRN-16-2", "distill/stored"], flops["WRN-40-2", "distill/stored"]
    assert alone[0] < alone[1] < flops["WRN-16-2", "distill/step"] < flops["WRN-40-2", "distill/step"]


def test_a_method_costs_its_steps_of_an_image() -> None:
    flops_per_image = {}
    for name, case in zip(get_args(Name), methods.cases(CPU, 2), strict=True):
        ours = case.open(tiny_networks.machine())
        (work,) = ours.work.values()
        assert list(ours.work) == [f"synthesize/{name}"]
        assert work.amount == 2 / METHODS[name].steps
        work.call()
        flops_per_image[name] = ours.flops
    steps = METHODS["dda-paper"].steps / METHODS["dda"].steps
    assert flops_per_image["dda-paper"] == pytest.approx(steps * flops_per_image["dda"], rel=0.02)
    assert flops_per_image["cmi"] > 1.5 * flops_per_image["dda-paper"], "it sees the teacher's features, too"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_similarities_of_the_baseline_are_cosines_of_normalized_embeddings(clip_folder: Path) -> None:
    network = filter.load_network(str(clip_folder))
    of = bench_images.sources(3, 24, variations=2)
    copies = bench_images.noisy_copies(of, 2)
    preprocess = filter.preprocess_of(network)
    published = PublishedSimilarity(model=network, preprocess=preprocess, copies=2, batch=2, device=CPU)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))

    def pixels(images: Tensor) -> Tensor:
        return (images.float() / 255 - mean) / std

    expected = F.cosine_similarity(
        network.encode_image(pixels(copies.images)),
        network.encode_image(pixels(of.images)).repeat_interleave(2, 0),
    )
    given = [bench_images.to_pil(images) for images in (of.images, copies.images)]
    torch.testing.assert_close(published.of_images(*given), expected, rtol=0, atol=1e-5)
    tensors = published.of_tensors(pixels(of.images), pixels(copies.images))
    torch.testing.assert_close(tensors, expected, rtol=0, atol=1e-5)


def test_a_filter_case(clip_folder: Path) -> None:
    network, size = filter.load_network(str(clip_folder)), filter.Size(sources=4, variations=2, batch=5)
    case = filter.case("tiny", network, size, CPU)
    ours = case.open(tiny_networks.machine())
    found = ours.work["filter/tiny"].call()
    assert isinstance(found, Tensor)
    assert found.shape == (8,)
    for work in case.published.values():
        assert work.amount == 12
        torch.testing.assert_close(work.call(), found, rtol=0, atol=1e-5)
    # Patches, two linear layers of attention, two of the MLP on ten tokens; the projection.
    tokens = 2 * 10 * (4 * 16 * 16 + 2 * 16 * 64) + 2 * 2 * 10 * 10 * 16
    assert ours.flops == pytest.approx(2 * 9 * 3 * 64 * 16 + tokens + 2 * 16 * 16)


def test_a_teacher_case_compares_logits_and_the_feature_map() -> None:
    case = teacher.case(CPU, 4)
    ours = case.open(tiny_networks.machine())
    assert list(ours.work) == ["teacher/WRN-40-2", "teacher/WRN-40-2, fused copy"]
    (eager,) = case.published.values()
    logits, feature = eager.call()
    assert feature.shape == (4, 128, 8, 8)
    for work in ours.work.values():
        outputs = work.call()
        torch.testing.assert_close(outputs["logits"], logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(outputs[teacher.FEATURE], feature, rtol=1e-3, atol=1e-3)


def test_attention_is_counted() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.rand(3, 5, 8)
    with torch.no_grad():
        found = flops(lambda: attention(x, x, x, need_weights=False))
    assert found == 3 * (2 * 5 * 8 * 8 * 4 + 2 * 2 * 5 * 5 * 8)


def test_close_is_by_value() -> None:
    require_close("x", torch.tensor([0.5, 0.51]), torch.tensor([0.51, 0.5]))
    with pytest.raises(DifferentWorkError, match="x: differs by 0.0300 from"):
        require_close("x", torch.tensor([0.5, 0.53]), torch.tensor([0.5, 0.5]))


def test_similarity_is_per_row_and_ignores_offset_and_scale() -> None:
    theirs = torch.rand(3, 10)
    require_alike("x", 255 * theirs + 3, theirs)
    ours = theirs.clone()
    ours[1] = torch.rand(10)
    with pytest.raises(DifferentWorkError, match="x: cosine"):
        require_alike("x", ours, theirs)
    with pytest.raises(DifferentWorkError):
        require_alike("x", theirs * torch.nan, theirs)
