"""The search for a batch size: when it ends, and which sizes it tries."""

import pytest

from engine.config.compute import ComputeConfig
from engine.generation.auto_batch.measure import Measurement, candidates, search


def run_search(
    rates: dict[int, float], *, capacity: int = 10**6, fits: int = 10**6
) -> tuple[Measurement, list[int]]:
    """Search sizes with the given rates; return the result and the sizes tried."""
    tried: list[int] = []

    def measure(size: int) -> Measurement:
        tried.append(size)
        return Measurement(min(size, capacity), rates[size])

    return search(sorted(rates), measure, lambda _, size: size <= fits), tried


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
def test_it_ends_if_a_size_gains_less_than_five_percent(
    rates: dict[int, float], found: int, tried: list[int]
) -> None:
    result, sizes = run_search(rates)
    assert (result, sizes) == (Measurement(found, rates[found]), tried)


def test_it_ends_if_a_size_did_not_fit_in_memory() -> None:
    result, tried = run_search({8: 1.0, 16: 2.0, 32: 3.0, 64: 4.0}, capacity=20)
    assert (result.size, tried) == (16, [8, 16, 32])


def test_a_first_size_that_does_not_fit_is_reduced_to_one_that_does() -> None:
    result, tried = run_search({8: 1.0, 16: 2.0}, capacity=3)
    assert (result.size, tried) == (3, [8])


def test_a_size_predicted_not_to_fit_is_not_tried() -> None:
    result, tried = run_search({8: 1.0, 16: 2.0, 32: 3.0}, fits=16)
    assert (result.size, tried) == (16, [8, 16])


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
def test_candidates_are_few_if_each_costs_a_build(
    settings: dict[str, object], most: int, expected: list[int]
) -> None:
    assert list(candidates(ComputeConfig(**settings), most)) == expected
