"""The batches that networks are opened for."""

import pytest

from engine.runtime.batching import batches


@pytest.mark.parametrize(
    ("rows", "tuned"), [(1, 1), (2, 1), (7, 4), (16, 8), (64, 32), (256, 32)], ids=lambda value: str(value)
)
def test_on_a_cpu_a_call_is_at_least_two_requests_of_at_most_32_rows(rows: int, tuned: int) -> None:
    assert batches("openvino", rows) == (1, tuned, rows)


def test_elsewhere_a_call_is_one_batch() -> None:
    assert batches("tensorrt", 256) == (1, 256, 256)
