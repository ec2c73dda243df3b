"""The start-up bench against importing torch and against a first export."""

from collections.abc import Sequence
from subprocess import CalledProcessError

import pytest

from bench import startup

SECONDS = {
    "-m engine.bank --help": [2.0, 9.0, 1.0],
    "-m engine.run --help": [4.0, 3.0, 5.0],
    "-c pass": [0.1, 0.3, 0.2],
    "-c import torch": [6.0, 8.0, 1.0],
    "-m export": [30.0, 5.0, 3.0, 4.0],
}
"""Fake seconds of each command: three rounds, with the first export before them."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace commands by a fake clock; return the arguments of each command that would run."""
    calls: list[list[str]] = []
    left = {command: iter(seconds) for command, seconds in SECONDS.items()}

    def seconds(arguments: Sequence[str]) -> float:
        calls.append(list(arguments))
        return next(left[" ".join(arguments).split(" --out ")[0]])

    monkeypatch.setattr(startup, "_seconds", seconds)
    monkeypatch.setattr(startup, "ROUNDS", 3)
    monkeypatch.setattr(startup, "COMMANDS", ("engine.bank", "engine.run"))
    return calls


def test_rows_are_medians_against_their_baselines_and_a_bare_interpreter(ran: list[list[str]]) -> None:
    found = {row.case: (row.baseline, row.ours, row.theirs, row.ratio, row.floor) for row in startup.rows()}
    again = "startup/export --network teacher --runtime onnxruntime, again"
    assert found == {
        "startup/engine.bank --help": ("import torch", 2.0, 6.0, 3.0, 0.2),
        "startup/engine.run --help": ("import torch", 4.0, 6.0, 1.5, 0.2),
        again: ("the first time", 4.0, 30.0, 7.5, 0.2),
    }
    assert len(ran) == sum(map(len, SECONDS.values()))


def test_commands_alternate_and_the_exports_share_a_folder(ran: list[list[str]]) -> None:
    list(startup.rows())
    *_, exported = ran
    assert exported[:3] == ["-m", "export", "--out"]
    assert exported[4:] == ["--network", "teacher", "--runtime", "onnxruntime"]
    helped = [["-m", "engine.bank", "--help"], ["-m", "engine.run", "--help"]]
    assert ran == 3 * [*helped, ["-c", "pass"], ["-c", "import torch"]] + 4 * [exported]


def test_a_command_that_fails_has_no_time() -> None:
    assert startup._seconds(["-c", "pass"]) > 0
    with pytest.raises(CalledProcessError):
        startup._seconds(["-c", "raise SystemExit(3)"])
