"""summary.json and the table of a summary."""

import json
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from engine.training.image_counts import AcceptancePoint, count_images
from engine.training.summary import Summary, results_table
from tests.engine.bank import tiny

DONE = Summary(
    recipe="fashion-mnist",
    seed=3,
    device="cpu",
    runtime="torch",
    precision="bf16",
    teacher_top1=0.9321,
    student_top1=0.8765,
    agreement=0.9012,
    accuracy_reason=None,
    images_synthesized=200,
    images_augmented=800,
    images_accepted=600,
    acceptance_rate=0.75,
    label_agreement={"sources": 0.9, "before": 0.5, "after_clip": 0.6, "after": None},
    clip_agreement=None,
    mean_pairwise_clip_distance=0.4,
    acceptance_curve=[
        {"omega": tenth / 20, "kept": 1 - tenth / 10, "label_agreement": 0.5 + tenth / 30}
        for tenth in range(10)
    ],
    seconds_by_stage={"synthesize": 61.04, "distill": 12.0},
    images_per_second=8.0,
    wall_seconds=75.0,
    images_sha256="ab",
)
NO_TEST_SET = replace(
    DONE, teacher_top1=None, student_top1=None, agreement=None, accuracy_reason="evaluate.data is null"
)


@pytest.mark.parametrize("summary", [DONE, NO_TEST_SET], ids=["measured", "not measured"])
def test_the_file_has_every_field_and_no_other_file_is_left(summary: Summary, tmp_path: Path) -> None:
    summary.write(tmp_path)
    values = json.loads((tmp_path / "summary.json").read_text())
    assert values == {field.name: getattr(summary, field.name) for field in fields(Summary)}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    "changes",
    [{"accuracy_reason": "none"}, {"student_top1": None}, {"agreement": None, "accuracy_reason": "none"}],
    ids=["values and a reason", "no value and no reason", "one of three"],
)
def test_a_summary_has_accuracies_or_a_reason(changes: dict) -> None:
    with pytest.raises(ValueError, match="and not both"):
        replace(DONE, **changes)


def test_a_number_that_is_not_finite_does_not_replace_the_old_file(tmp_path: Path) -> None:
    DONE.write(tmp_path)
    before = (tmp_path / "summary.json").read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(DONE, images_per_second=float("nan")).write(tmp_path)
    assert (tmp_path / "summary.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def _shown(summary: Summary) -> str:
    text = StringIO()
    Console(width=120, file=text).print(results_table(summary, Path("runs/x")))
    return text.getvalue()


def test_table_shows_the_results() -> None:
    text = _shown(DONE)
    for part in ("93.21%", "87.65%", "90.12%", "600 accepted (75.00%)", "after clip 60.00%"):
        assert part in text
    assert "after -" not in text, "a share that was not measured is left out"
    for part in ("synthesize 61.0", "1:15 on cpu in bf16", "runs/x"):
        assert part in text


def test_table_says_what_an_omega_is_worth() -> None:
    words = "omega 0.05 keeps 90%, teacher agrees with 53.3%; 0.25 keeps 50%, 66.7%; 0.45 keeps 10%, 80.0%"
    assert words in _shown(DONE)
    assert "omega" not in _shown(replace(DONE, acceptance_curve=None))


def _counted_one_by_one(similarity: np.ndarray, agrees: np.ndarray) -> list[AcceptancePoint]:
    points: list[AcceptancePoint] = []
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        for thousandths in range(999, -1001, -1):
            kept = similarity >= np.float32(thousandths / 1000)
            if kept.mean() >= share - 1e-9:
                agreement = float(agrees[kept].mean())
                points.append(
                    {"omega": thousandths / 1000, "kept": kept.mean(), "label_agreement": agreement}
                )
                break
    return points


@pytest.mark.parametrize("width", [2.0, 0.02], ids=["wide", "a few bins"])
def test_acceptance_curve_equals_a_count_one_by_one(width: float) -> None:
    shards = [tiny.shard(number, length=90)[0] for number in range(3)]
    shards = [replace(rows, similarity=rows.similarity * np.float32(width / 2)) for rows in shards]
    shards[1].similarity[40:44] = [0.009, 0.009, -0.003, 0.001]  # on the edges of bins
    varied = [rows.parents >= 0 for rows in shards]
    similarity = np.concatenate([rows.similarity[mask] for rows, mask in zip(shards, varied, strict=True)])
    agrees = [(rows.teacher_top1 == rows.labels)[mask] for rows, mask in zip(shards, varied, strict=True)]
    curve = count_images(iter(shards)).by_similarity.curve
    assert curve is not None
    expected = _counted_one_by_one(similarity, np.concatenate(agrees))
    assert len(expected) == 10
    for found, wanted in zip(curve, expected, strict=True):
        assert found == pytest.approx(wanted)
    json.dumps(curve)


def test_acceptance_curve_of_the_ends_and_without_similarities() -> None:
    rows = tiny.shard(0)[0]
    assert count_images([]).by_similarity.curve is None
    without = replace(rows, similarity=np.full(len(rows), np.nan, np.float32))
    assert count_images([without]).by_similarity.curve is None
    ends = np.where(np.arange(len(rows)) % 2, 1.0000001, -1.0000001).astype(np.float32)
    curve = count_images([replace(rows, similarity=ends)]).by_similarity.curve
    assert curve is not None
    assert [(point["omega"], point["kept"]) for point in curve] == [(-1.0, 1.0)] * 5 + [(0.999, 0.5)] * 5


def test_table_shows_top_5_if_it_is_measured() -> None:
    assert "top-5" not in _shown(DONE)
    text = _shown(replace(DONE, teacher_top5=0.9911, student_top5=0.9822))
    assert "top-5 accuracy" in text
    assert "teacher 99.11%, student 98.22%" in text


def test_table_gives_the_reason() -> None:
    assert "evaluate.data is null" in _shown(NO_TEST_SET)


def test_table_shows_a_warning_if_there_is_one() -> None:
    assert "warning" not in _shown(DONE)
    text = _shown(replace(DONE, warning="chance is 10.0%"))
    assert "warning" in text
    assert "chance is 10.0%" in text
