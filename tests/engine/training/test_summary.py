"""summary.json and the table of a summary."""

import json
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from engine.training.summary import Summary, results_table

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
