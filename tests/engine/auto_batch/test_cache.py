"""Readings that are kept: found by all that decides them, and measured again where the file is no good."""

import json
from pathlib import Path

import pytest

from engine.auto_batch import cache
from engine.auto_batch.search import Reading

QUESTION = {"stage": "augment", "device": "a GPU", "networks": {"teacher": ["wrn", "abc"]}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = cache.path_of(tmp_path / "engines", "augment", QUESTION)
    assert cache.read(path) is None
    cache.write(path, Reading(64, 812.5), QUESTION)
    assert cache.read(path) == Reading(64, 812.5)
    cache.write(path, Reading(128, 900.0), QUESTION)
    assert cache.read(path) == Reading(128, 900.0)
    assert json.loads(path.read_text())["measured_for"] == QUESTION
    assert list(path.parent.iterdir()) == [path]


def test_another_question_is_another_file(tmp_path: Path) -> None:
    paths = [
        cache.path_of(tmp_path, "augment", QUESTION | change)
        for change in ({}, {"device": "another"}, {"networks": {"teacher": ["wrn", "abd"]}}, {"threads": 2})
    ]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"size": 64}',
        '{"size": 0, "images_per_second": 1.0}',
        '{"size": "64", "images_per_second": 1.0}',
        '{"size": true, "images_per_second": 1.0}',
        '{"size": 64, "images_per_second": NaN}',
        '{"size": 64, "images_per_second": "fast"}',
    ],
)
def test_a_file_that_is_no_answer_counts_for_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "batch-augment-0.json"
    path.write_text(content)
    assert cache.read(path) is None


def test_bytes_that_are_no_text_count_for_none(tmp_path: Path) -> None:
    path = tmp_path / "batch-augment-0.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert cache.read(path) is None


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "batch-augment-0.json"
    cache.write(path, Reading(8, 1.0), {})
    with pytest.raises(TypeError):
        cache.write(path, Reading(16, 2.0), {"not": object()})
    assert cache.read(path) == Reading(8, 1.0)
    assert list(tmp_path.iterdir()) == [path]
