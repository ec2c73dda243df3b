"""Runs, whole or cut."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.cli.main import main
from engine.run import command
from engine.training import checkpoint

OFTEN = ("--schedule.checkpoint_steps", "2")


def run(recipe: Path | str, out: Path, *arguments: str) -> dict[str, Any]:
    """Return the summary of a run that succeeds."""
    assert main(command, ["--recipe", str(recipe), "--out", str(out), *arguments]) == 0
    return json.loads((out / "summary.json").read_text())


@contextmanager
def interrupted_at(commit_number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt a run at commit `commit_number`, counted from 0, instead of committing."""
    commit, commits = checkpoint.save, 0

    def last_commit(*state: Any) -> None:
        nonlocal commits
        if commits == commit_number:
            raise KeyboardInterrupt
        commits += 1
        commit(*state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", last_commit)
        yield


def run_until(
    commit_number: int, recipe: Path | str, out: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> int:
    """Run until commit `commit_number`, and return the exit code.

    The tiny recipe commits after each of 4 batches, and after every 2 of 6 steps in rounds of 3.
    """
    with interrupted_at(commit_number, monkeypatch):
        return main(command, ["--recipe", str(recipe), "--out", str(out), *OFTEN, *arguments])


def same_student(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a / "student.safetensors"), load_file(b / "student.safetensors")
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())
