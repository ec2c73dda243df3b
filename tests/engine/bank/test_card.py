"""The card describes the contents and the origin of the bank."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from engine.bank.verify import verify
from tests.engine.bank import tiny


def _card(folder: Path, **changes: object) -> str:
    tiny.write(folder, **changes)
    return (folder / "README.md").read_text()


def test_the_card_says_what_is_in_the_bank(tmp_path: Path) -> None:
    facts = {"teacher": {"name": "wrn_16_2", "licence": "MIT"}, "priors": {"clip": {"licence": "CC0"}}}
    text = _card(tmp_path, facts=facts)
    rows = [tiny.shard(number)[0] for number in range(3)]
    labels = np.concatenate([it.labels[it.kept] for it in rows])
    for name, count in zip(tiny.CLASSES, np.bincount(labels, minlength=3), strict=True):
        assert any(line.split()[:2] == [name, str(count)] for line in text.splitlines())
    agreeing = np.concatenate([(it.teacher_top1 == it.labels)[it.kept] for it in rows]).mean()
    assert f"| kept | 30 | {agreeing:.2%} |" in text
    assert "| before the filter | 36 |" in text
    assert "All images are synthetic" in text
    assert (
        "- teacher:\n  - name: wrn_16_2\n  - licence: MIT\n- priors:\n  - clip:\n    - licence: CC0\n" in text
    )
    assert '"omega": 0.5' in text


def test_the_similarity_histogram_counts_all_and_kept(tmp_path: Path) -> None:
    text = _card(tmp_path)
    rows = [tiny.shard(number)[0] for number in range(3)]
    similarity = np.concatenate([it.similarity for it in rows])
    kept = np.concatenate([it.kept for it in rows])
    inside = (similarity >= 0.05) & (similarity < 0.1)
    line = next(line for line in text.splitlines() if line.startswith(" 0.05 to  0.10"))
    assert line.split()[3:5] == [str(inside.sum()), str((inside & kept).sum())]


def test_the_front_matter_is_what_hugging_face_reads(tmp_path: Path) -> None:
    matter = yaml.safe_load(_card(tmp_path).split("---\n")[1])
    assert matter["configs"][0]["data_files"] == [{"split": "train", "path": "*.tar"}]
    assert matter["size_categories"] == ["n<1K"]
    assert [feature["name"] for feature in matter["dataset_info"][0]["features"]][:2] == ["npy", "json"]


def test_an_empty_bank_has_a_card(tmp_path: Path) -> None:
    tiny.write(tmp_path, [])
    assert "0 images of 8 x 8" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("heading", "before"),
    [
        ("## Source models\n", "## Made with\n"),
        ("## CLIP similarity\n", "## Similarity to the source image\n"),
    ],
)
def test_a_card_of_earlier_wording_is_no_damage(tmp_path: Path, heading: str, before: str) -> None:
    text = _card(tmp_path)
    earlier = text.replace(heading, before)
    assert earlier != text
    (tmp_path / "README.md").write_text(earlier)
    assert verify(str(tmp_path)) == []
    (tmp_path / "README.md").write_text(text.replace("| kept |", "| lost |"))
    (problem,) = verify(str(tmp_path))
    assert problem.file == "README.md"
