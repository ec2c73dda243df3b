"""One worker in this process: failed writes, bugs, non-finite numbers, and resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.bank.verify import verify
from engine.cli.main import main
from engine.generate import command
from engine.generation.workers import retry_queue, worker


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_queue, "FIRST_PAUSE", 0.0)


def generate(recipe: Path, out: Path, *arguments: str) -> int:
    return main(command, ["--recipe", str(recipe), "--out", str(out), "--shards", "3", *arguments])


def fail(monkeypatch: pytest.MonkeyPatch, errors: dict[int, list[Exception]]) -> None:
    """Raise the errors, one per try, when the files of these shards are written."""
    write = worker.write_shard

    def failing(url: str, number: int, *rest: Any) -> Any:
        if errors.get(number):
            raise errors[number].pop(0)
        return write(url, number, *rest)

    monkeypatch.setattr(worker, "write_shard", failing)


def test_a_disk_that_fails_for_a_while(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, {1: [OSError(5, "Input/output error"), OSError(5, "Input/output error")]})
    assert generate(recipe, tmp_path / "bank") == 0
    assert "2 retries" in capsys.readouterr().out
    assert verify(str(tmp_path / "bank")) == []


def test_a_shard_that_goes_on_failing_is_named_and_resume_makes_it(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bank"
    fail(monkeypatch, {1: [OSError(28, "No space left on device") for _ in range(3)]})
    assert generate(recipe, out, "--retries", "2") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {out}: 2 shards made, 0 already there; ")
    assert "1 shard failed: 00001 ([Errno 28] No space left on device)" in error
    assert error.count("\n") == 1
    assert generate(recipe, out, "--resume") == 0
    assert verify(str(out)) == []


def test_a_bug_is_logged_with_its_traceback_and_ends_in_one_line(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, {0: [ZeroDivisionError("by nothing")]})
    assert generate(recipe, tmp_path / "bank", "--retries", "0") == 1
    out, error = capsys.readouterr()
    assert "Traceback (most recent call last)" in out
    assert "00000 (ZeroDivisionError: by nothing)" in error


def test_numbers_that_are_not_finite_are_not_tried_again(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(recipe, tmp_path / "bank", "--synthesize.lr", "1e38") == 1
    out, error = capsys.readouterr()
    assert "3 shards failed: 00000 (synthesize: no finite loss" in error
    assert "retr" not in out


def test_resume_goes_on_with_the_threads_of_the_bank(recipe: Path, tmp_path: Path) -> None:
    """Without --threads, and although this machine would take another number."""
    text = recipe.read_text().replace("  threads: 1\n", "")
    assert "threads" not in text
    bare = tmp_path / "bare.yaml"
    bare.write_text(text)
    out = tmp_path / "bank"
    assert main(command, ["--recipe", str(bare), "--out", str(out), "--threads", "1"]) == 0
    torch.set_num_threads(2)
    assert generate(bare, out, "--resume") == 0
