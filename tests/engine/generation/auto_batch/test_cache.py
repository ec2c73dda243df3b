"""Readings that are kept: found by all that decides them, and measured again where the file is no good."""

import json
from pathlib import Path

import pytest

from engine.generation.auto_batch.measure import Reading
from engine.generation.auto_batch.settle import cache_path, read_cache, write_cache

QUESTION = {"stage": "augment", "device": "a GPU", "networks": {"teacher": ["wrn", "abc"]}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = cache_path(tmp_path / "engines", "augment", QUESTION)
    assert read_cache(path) is None
    write_cache(path, Reading(64, 812.5), QUESTION)
    assert read_cache(path) == Reading(64, 812.5)
    write_cache(path, Reading(128, 900.0), QUESTION)
    assert read_cache(path) == Reading(128, 900.0)
    assert json.loads(path.read_text())["measured_for"] == QUESTION
    assert list(path.parent.iterdir()) == [path]


def test_another_question_is_another_file(tmp_path: Path) -> None:
    paths = [
        cache_path(tmp_path, "augment", QUESTION | change)
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
    assert read_cache(path) is None


def test_bytes_that_are_no_text_count_for_none(tmp_path: Path) -> None:
    path = tmp_path / "batch-augment-0.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert read_cache(path) is None


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "batch-augment-0.json"
    write_cache(path, Reading(8, 1.0), {})
    with pytest.raises(TypeError):
        write_cache(path, Reading(16, 2.0), {"not": object()})
    assert read_cache(path) == Reading(8, 1.0)
    assert list(tmp_path.iterdir()) == [path]
