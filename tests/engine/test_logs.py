"""Which log records commands show; without a command, nothing is printed."""

import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from engine import distill, evaluate, generate, networks, pretrain, run
from engine.bank import __main__ as bank
from engine.cli.main import main
from engine.cli.resolve import resolve
from engine.datasets import fetch
from engine.errors import UserError
from engine.exporting import command as exporting
from engine.loop import run as run_loop
from engine.progress import Progress
from engine.recipes.load import load_recipe
from engine.terminal import PACKAGES

LOGGER = logging.getLogger("engine.somewhere")


def command(arguments: Sequence[str]) -> None:
    LOGGER.debug("a detail")
    LOGGER.info("[news] %s", "of 10 %")
    logging.getLogger("export.store").warning("a [warning]")
    LOGGER.error("worker 1: killed")
    print("the result", *arguments)


SHOWN = ["[news] of 10 %", "warning: a [warning]", "worker 1: killed", "the result --shards 2"]


def test_a_command_shows_news_and_warnings_as_their_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command, ["--shards", "2"]) == 0
    out, error = capsys.readouterr()
    assert (out.splitlines(), error) == (SHOWN, "")


def test_quiet_leaves_warnings_errors_and_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command, ["--quiet", "--shards", "2"]) == 0
    out, error = capsys.readouterr()
    assert (out.splitlines(), error) == (SHOWN[1:], "")


def test_verbose_adds_details_the_time_and_the_logger(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command, ["--shards", "2", "--quiet", "--verbose"]) == 0, "the last flag wins"
    lines = capsys.readouterr().out.splitlines()
    assert [line[8:] for line in lines[:-1]] == [
        " engine.somewhere: a detail",
        " engine.somewhere: [news] of 10 %",
        " export.store: warning: a [warning]",
        " engine.somewhere: worker 1: killed",
    ]
    assert all(line[2] == line[5] == ":" for line in lines[:-1])
    assert lines[-1] == SHOWN[-1]


def test_a_long_line_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    main(lambda _: LOGGER.info("word " * 100), [])
    assert capsys.readouterr().out == "word " * 100 + "\n"


def test_the_loggers_are_afterwards_as_before() -> None:
    def state() -> list[tuple[int, bool, list[logging.Handler]]]:
        loggers = [logging.getLogger(name) for name in PACKAGES]
        return [(each.level, each.propagate, list(each.handlers)) for each in loggers]

    before = state()
    main(lambda _: None, ["--verbose"])
    assert state() == before


def test_a_library_user_who_configures_nothing_sees_nothing() -> None:
    """Python itself would print warnings to stderr."""
    script = (
        "import engine, export, logging\nfor name in ('engine.x', 'export.x'): logging.getLogger(name).{}"
    )
    found = subprocess.run(
        [sys.executable, "-c", script.format("warning('w')")], capture_output=True, text=True, check=True
    )
    assert (found.stdout, found.stderr) == ("", "")


def test_a_run_of_the_library_prints_nothing_and_logs_news(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(run.command, ["--recipe", str(recipe), "--out", str(tmp_path / "command"), "--quiet"]) == 0
    assert " images in " not in capfd.readouterr().out
    tiny = load_recipe(str(tmp_path / "command/config.yaml"))  # with every `auto` resolved
    with Progress() as progress:
        run_loop(tiny, tmp_path / "silent", resume=False, progress=progress)
    assert capfd.readouterr() == ("", "")
    caplog.set_level(logging.INFO, "engine")
    with Progress() as progress:
        run_loop(tiny, tmp_path / "logged", resume=False, progress=progress)
    assert capfd.readouterr().out == ""
    assert ("engine.loop", logging.INFO, "tiny: cpu, fp32") in caplog.record_tuples
    assert any(name == "engine.progress" for name, _, _ in caplog.record_tuples)


NEWS = [
    "tiny: starting, with the results in ",
    "tiny: cpu, fp32",
    "loading the teacher, engine:wrn_16_1",
    "building the student, engine:wrn_16_1",
    "loading CLIP, local-dir:",
    "loading the prior, ",
    "opening the teacher in torch fp32",
    "opening the prior in torch fp32",
    "opening CLIP in torch fp32",
    "to do: 4 batches of images, 6 training steps",
    "synthesize 6 images in ",
]


def test_a_run_says_what_it_waits_for_until_the_first_stage(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(run.command, ["--recipe", str(recipe), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[: len(start)] for line, start in zip(lines, NEWS, strict=False)] == NEWS


def test_the_bars_are_there_before_the_networks(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: dict[str, int] = {}

    def load(*_: object) -> None:
        totals.update({name: stage.total for name, stage in progress._stages.items()})
        raise UserError("enough")

    monkeypatch.setattr(networks, "load", load)
    progress = Progress()
    with progress, pytest.raises(UserError, match="enough"):
        run_loop(resolve(load_recipe(str(recipe))), tmp_path / "out", resume=False, progress=progress)
    assert totals == {"synthesize": 24, "augment": 72, "filter": 72, "distill": 48}


WITHOUT_TORCH = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
sys.modules["torch"] = None
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "arguments"), [("run", []), ("generate", []), ("distill", ["--bank", "some/bank"])]
)
def test_the_first_line_does_not_wait_for_torch(module: str, arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, f"engine.{module}", "--recipe", "fashion-mnist"]
    done = subprocess.run(
        [*command, *arguments, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"fashion-mnist: starting, with the results in {tmp_path / 'out'}\n"
    assert "import of torch halted" in done.stderr


HELP: dict[str, tuple[Callable[[list[str]], object], list[str]]] = {
    "run": (run.command, []),
    "generate": (generate.command, []),
    "distill": (distill.command, []),
    "evaluate": (evaluate.command, []),
    "pretrain": (pretrain.command, []),
    "export": (exporting.command, []),
    "fetch": (fetch.main, []),
    "bank": (bank.command, []),
    "bank verify": (bank.command, ["verify"]),
    "bank merge": (bank.command, ["merge"]),
}


@pytest.mark.parametrize("name", HELP)
def test_the_help_of_each_command_lists_both_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown, arguments = HELP[name]
    with pytest.raises(SystemExit):
        shown([*arguments, "--help"])
    words = capsys.readouterr().out.split()
    assert "--quiet" in words
    assert "--verbose" in words


def test_quiet_of_a_generation_leaves_its_result(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--recipe", str(recipe), "--shards", "1", "--threads", "1", "--out"]
    assert main(generate.command, [*arguments, str(tmp_path / "quiet"), "--quiet"]) == 0
    quiet = capsys.readouterr().out
    assert quiet.startswith(f"{tmp_path / 'quiet'}: 1 shard made, 0 already there; ")
    assert quiet.count("\n") == 1
    assert main(generate.command, [*arguments, str(tmp_path / "verbose"), "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    out = tmp_path / "verbose"
    assert lines[0].endswith(f" engine.cli.main: tiny: starting, with the results in {out}")
    assert lines[1].endswith(" engine.generation.generate_bank: tiny: cpu, fp32")
    assert any(" engine.bank.writer: shard 00000 committed: " in line for line in lines)
