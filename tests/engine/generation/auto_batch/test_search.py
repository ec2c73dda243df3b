"""The search for a size: where it ends, and what it never tries."""

import pytest

from engine.config.compute import ComputeConfig
from engine.generation.auto_batch.measure import Reading, best, candidates


def searched(rates: dict[int, float], *, holds: int = 10**6, fits: int = 10**6) -> tuple[Reading, list[int]]:
    """What is found where a size has this rate, and which sizes were tried."""
    tried: list[int] = []

    def measure(size: int) -> Reading:
        tried.append(size)
        return Reading(min(size, holds), rates[size])

    return best(sorted(rates), measure, lambda _, size: size <= fits), tried


@pytest.mark.parametrize(
    ("rates", "found", "tried"),
    [
        ({8: 100.0}, 8, [8]),
        ({8: 100.0, 16: 150.0, 32: 156.0, 64: 400.0}, 16, [8, 16, 32]),
        ({8: 100.0, 16: 90.0, 32: 200.0}, 8, [8, 16]),
        ({8: 100.0, 16: 106.0, 32: 113.0}, 32, [8, 16, 32]),
    ],
    ids=["one", "below five percent", "slower", "to the end"],
)
def test_it_ends_where_a_size_gains_less_than_five_percent(
    rates: dict[int, float], found: int, tried: list[int]
) -> None:
    reading, sizes = searched(rates)
    assert (reading, sizes) == (Reading(found, rates[found]), tried)


def test_it_ends_where_memory_did_not_hold_a_size() -> None:
    reading, tried = searched({8: 1.0, 16: 2.0, 32: 3.0, 64: 4.0}, holds=20)
    assert (reading.size, tried) == (16, [8, 16, 32])


def test_a_first_size_that_memory_does_not_hold_is_cut_to_what_it_does() -> None:
    reading, tried = searched({8: 1.0, 16: 2.0}, holds=3)
    assert (reading.size, tried) == (3, [8])


def test_what_will_not_fit_is_not_tried() -> None:
    reading, tried = searched({8: 1.0, 16: 2.0, 32: 3.0}, fits=16)
    assert (reading.size, tried) == (16, [8, 16])


@pytest.mark.parametrize(
    ("settings", "most", "expected"),
    [
        ({"runtime": "torch"}, 2400, [8, 16, 32, 64, 128, 256, 512, 1024]),
        ({"runtime": "torch"}, 18, [8, 16]),
        ({"runtime": "torch"}, 5, [5]),
        ({"runtime": "openvino"}, 1536, [32, 64, 128, 256]),
        ({"runtime": "tensorrt"}, 1536, [16, 64, 256]),
        ({"runtime": "torch", "compile": True}, 100, [16, 64]),
    ],
)
def test_candidates_are_few_where_each_costs_a_build(
    settings: dict[str, object], most: int, expected: list[int]
) -> None:
    assert list(candidates(ComputeConfig(**settings), most)) == expected
