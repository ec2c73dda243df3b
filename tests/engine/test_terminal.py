"""A failed write never ends the work, and text is printed verbatim."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from engine.cli.main import REMEDIES, main
from engine.training.image_counts import LabelAgreement
from engine.training.summary import Summary, results_table

ROOT = Path(__file__).parents[2]
COMMAND = """
import sys
from engine.cli.main import main

def command(arguments):
    for _ in range(20_000):
        sys.stdout.write("b\\u00e4r\\n")
    with open(arguments[0], "w", encoding="utf-8") as file:
        file.write("done" if file.fileno() > 2 else "took a standard stream")

sys.exit(main(command))
"""


def _run(shell: str, done: Path, **environment: str) -> tuple[int, bytes, bytes]:
    """Run a command that prints 20,000 lines, followed by `shell`, and assert that it did its work."""
    line = f"'{sys.executable}' -c '{COMMAND}' '{done}' {shell}"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.read_text(encoding="utf-8") == "done"
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-", "<&- >&-"])
def test_closed_from_the_start(shell: str, tmp_path: Path) -> None:
    assert _run(shell, tmp_path / "done") == (0, b"", b"")


def test_a_reader_that_closes_the_pipe_ends_nothing(tmp_path: Path) -> None:
    assert _run("| head -n 1", tmp_path / "done", PYTHONUTF8="1") == (0, "b\u00e4r\n".encode(), b"")


def test_lost_output_is_reported_at_the_end(tmp_path: Path) -> None:
    code, _, error = _run("> /dev/full", tmp_path / "done")
    assert (code, error) == (1, b"error: standard output: No space left on device; the work itself is done\n")


def test_a_character_that_the_terminal_lacks_is_escaped(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, out, error = _run("", tmp_path / "done", **ascii_only)
    assert (code, error, out.splitlines()[0]) == (0, b"", rb"b\xe4r")


@pytest.mark.parametrize("number", REMEDIES)
def test_a_full_disk_is_one_line_with_the_next_step(number: int, capsys) -> None:
    def command(_: object) -> None:
        raise OSError(number, os.strerror(number), "runs/x/checkpoints/state.pt")

    assert main(command, []) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "runs/x/checkpoints/state.pt" in line
    assert "--resume" in line


def test_brackets_and_colons_in_names_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.terminal import console, on_console

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    agreement = LabelAgreement(sources=None, before=None, after_clip=None, after=None)
    numbers = dict.fromkeys(Summary.__dataclass_fields__, 0)
    texts = {"device": "cpu", "runtime": "[x]", "precision": "fp32", "recipe": "a[/b]", "images_sha256": ""}
    shares = {"teacher_top1": None, "student_top1": None, "agreement": None, "accuracy_reason": "[red]no"}
    summary = Summary(
        **{**numbers, **texts, **shares, "label_agreement": agreement, "seconds_by_stage": {"[/]": 1.0}}
    )
    console().print(results_table(summary, Path("runs[x]/:smile:")))
    with on_console([]):
        logging.getLogger("engine.somewhere").info("[/log] :smile:")
    for text in ("a[/b]", "runtime [x]", "[red]no", "runs[x]/:smile:", "[/] 1.0", "[/log] :smile:"):
        assert text in out.getvalue()


def test_only_one_place_makes_a_console() -> None:
    """Another console could read brackets in a name as markup."""
    found = [
        str(path.relative_to(ROOT))
        for floor in ("kernels", "export", "engine", "bench")
        for path in (ROOT / floor).rglob("*.py")
        if f" {Console.__name__}(" in path.read_text(encoding="utf-8")
    ]
    assert found == ["engine/terminal.py"]
