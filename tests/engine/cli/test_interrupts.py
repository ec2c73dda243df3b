"""SIGTERM and Ctrl-C end a command cleanly and say how to continue; a second signal ends it at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine import distill, generate, networks, run
from engine.cli.main import main
from engine.training import checkpoint, run_folder
from tests.commands import Command, CommandServer
from tests.tiny_recipe import write_recipe

CODES = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
ONE_THREAD = ("--threads", "1")


def until(command: Command, file: Path) -> None:
    """Wait until the command has written `file`."""
    last = time.monotonic() + 120
    while not file.exists():
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < last
        time.sleep(0.01)


@pytest.mark.parametrize("number", CODES)
def test_a_run_that_is_stopped_resumes_to_the_same_student(
    number: signal.Signals, commands: CommandServer, tmp_path: Path
) -> None:
    schedule = {"rounds": 1, "kd_steps": 40, "checkpoint_steps": 1}
    recipe = write_recipe(tmp_path / "recipe", schedule=schedule)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(run.command, ["--recipe", str(recipe), "--out", str(whole)]) == 0
    running = commands.start("engine.run", ["--recipe", str(recipe), "--out", str(out)])
    until(running, out / "checkpoints" / "state.pt")
    running.send_signal(number)
    _, error = running.communicate()
    code, word = CODES[number]
    assert (running.returncode, error) == (
        code,
        f"to continue, repeat the command with --out {out} --resume\n{word}\n",
    )
    assert not (out / "student.safetensors").exists()
    resumed = commands.start("engine.run", ["--out", str(out), "--resume"])
    _, error = resumed.communicate()
    assert (resumed.returncode, error) == (0, "")
    assert (out / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()


def stopping(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, which first sends the signal to this process."""

    def stop(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        return function(*arguments, **options)

    return stop


@pytest.fixture(scope="module")
def bank(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("banks") / "bank")
    assert main(generate.command, ["--recipe", str(recipe), "--out", out, *ONE_THREAD]) == 0
    return out


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("command", [run.command, generate.command, distill.command])
def test_a_command_that_is_stopped_while_it_loads_has_written_nothing(
    command: Callable[[Sequence[str]], None],
    number: signal.Signals,
    recipe: Path,
    bank: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = [signal.getsignal(each) for each in CODES]
    monkeypatch.setattr(networks, "load_pair", stopping(number, networks.load_pair))
    source = ["--bank", bank] if command is distill.command else ["--recipe", str(recipe)]
    code, word = CODES[number]
    assert main(command, [*source, "--out", str(tmp_path / "out"), *ONE_THREAD]) == code
    assert capsys.readouterr().err == f"nothing was written to {tmp_path / 'out'}\n{word}\n"
    assert not (tmp_path / "out").exists()
    assert [signal.getsignal(each) for each in CODES] == before


def test_a_distillation_that_is_stopped_says_how_to_continue(
    bank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bank", bank, "--out", str(tmp_path), *ONE_THREAD]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopping(signal.SIGTERM, checkpoint.save))
        assert main(distill.command, arguments) == 143
    assert capsys.readouterr().err == (
        f"to continue, repeat the command with --out {tmp_path} --resume\nterminated\n"
    )
    assert main(distill.command, [*arguments, "--resume"]) == 0
    assert (tmp_path / run_folder.STUDENT).exists()


STUBBORN = """
import sys, time
from engine.cli.main import main
def stubborn(arguments):
    try:
        print("working", flush=True)
        time.sleep(100)
    except KeyboardInterrupt:
        print("stopping", flush=True)
        time.sleep(100)
sys.exit(main(stubborn, []))
"""


@pytest.mark.parametrize("second", CODES)
@pytest.mark.parametrize("first", CODES)
def test_a_second_signal_ends_the_process_at_once(first: signal.Signals, second: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(first)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(second)
        assert process.wait(timeout=60) == -second
