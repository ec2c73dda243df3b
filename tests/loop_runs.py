"""Runs of the loop, whole or cut."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine import loop as loop_module
from engine.cli.main import main
from engine.run import command

OFTEN = ("--schedule.checkpoint_steps", "2")


def run(recipe: Path | str, out: Path, *arguments: str) -> dict[str, Any]:
    """Return the summary of a run that succeeds."""
    assert main(command, ["--recipe", str(recipe), "--out", str(out), *arguments]) == 0
    return json.loads((out / "summary.json").read_text())


def run_until(
    commit_number: int, recipe: Path | str, out: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> int:
    """Run until commit `commit_number`, interrupt instead of committing, and return the exit code.

    Commits are counted from 0. The tiny recipe makes one after each of 4 batches, and after every 2 of 6
    steps in rounds of 3.
    """
    commit, commits = loop_module.checkpoint.save, 0

    def last_commit(*state: Any) -> None:
        nonlocal commits
        if commits == commit_number:
            raise KeyboardInterrupt
        commits += 1
        commit(*state)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.checkpoint, "save", last_commit)
        return main(command, ["--recipe", str(recipe), "--out", str(out), *OFTEN, *arguments])


def same_student(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a / "student.safetensors"), load_file(b / "student.safetensors")
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())
