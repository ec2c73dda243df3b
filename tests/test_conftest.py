"""Uninitialized memory is poisoned in our code only."""

import pytest
import torch

from tests import conftest


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("torch.empty(3)", float("nan")),
        ("torch.empty_like(x, dtype=torch.bfloat16)", float("nan")),
        ("x.new_empty(3)", float("nan")),
        ("torch.empty(3, dtype=torch.uint8)", 255),
        ("torch.empty(3, dtype=torch.bool)", True),
    ],
)
def test_our_code_gets_poison(expression: str, expected: float) -> None:
    scope = {"__name__": "engine.example", "torch": torch, "x": torch.zeros(3)}
    got = eval(expression, scope)
    torch.testing.assert_close(got, torch.full_like(got, expected), equal_nan=True)


def test_other_code_gets_unchanged_memory() -> None:
    allocate = conftest._poisoned(torch.zeros)
    assert torch.equal(allocate(3), torch.zeros(3))
