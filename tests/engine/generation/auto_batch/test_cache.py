"""Cached measurements: found by their conditions, and ignored if the file is damaged."""

import json
from pathlib import Path

import pytest

from engine.generation.auto_batch.measure import Measurement
from engine.generation.auto_batch.resolve import cache_path, read_cache, write_cache

CONDITIONS = {"stage": "augment", "device": "a GPU", "networks": {"teacher": ["wrn", "abc"]}}


def test_a_written_measurement_is_read(tmp_path: Path) -> None:
    path = cache_path(tmp_path / "engines", "augment", CONDITIONS)
    assert read_cache(path) is None
    write_cache(path, Measurement(64, 812.5), CONDITIONS)
    assert read_cache(path) == Measurement(64, 812.5)
    write_cache(path, Measurement(128, 900.0), CONDITIONS)
    assert read_cache(path) == Measurement(128, 900.0)
    assert json.loads(path.read_text())["measured_for"] == CONDITIONS
    assert list(path.parent.iterdir()) == [path]


def test_other_conditions_have_another_file(tmp_path: Path) -> None:
    paths = [
        cache_path(tmp_path, "augment", CONDITIONS | change)
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
def test_an_invalid_file_is_ignored(content: str, tmp_path: Path) -> None:
    path = tmp_path / "batch-augment-0.json"
    path.write_text(content)
    assert read_cache(path) is None


def test_bytes_that_are_no_text_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "batch-augment-0.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert read_cache(path) is None


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "batch-augment-0.json"
    write_cache(path, Measurement(8, 1.0), {})
    with pytest.raises(TypeError):
        write_cache(path, Measurement(16, 2.0), {"not": object()})
    assert read_cache(path) == Measurement(8, 1.0)
    assert list(tmp_path.iterdir()) == [path]
