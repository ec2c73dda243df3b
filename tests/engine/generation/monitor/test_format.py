"""Formats of numbers and texts."""

import pytest

from engine.progress import counted, one_line, rate

RATES = [
    (0, "0.0"),
    (0.26, "0.3"),
    (9.94, "9.9"),
    (9.96, "10"),
    (999.4, "999"),
    (999.6, "1.0 k"),
    (1234, "1.2 k"),
    (45_678, "46 k"),
    (7.5e6, "7.5 M"),
    (2e13, "20000 G"),
]


@pytest.mark.parametrize(("per_second", "text"), RATES)
def test_rate(per_second: float, text: str) -> None:
    assert rate(per_second) == text


def test_counted() -> None:
    assert [counted(count, "retry", "retries") for count in (0, 1, 1200)] == [
        "0 retries",
        "1 retry",
        "1,200 retries",
    ]


def test_one_line_has_nothing_that_a_terminal_obeys() -> None:
    assert one_line("a\n b\x1b[2J\tç\u202e") == "a b [2J ç"
