"""Compare `engine.distill` on two ranks, on CPUs with gloo, to one process with the same global batches.

Most tests fork the ranks; two of them start torchrun.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.torchrun import losses, torchrun
from engine.cli.main import main
from engine.generate import command as generate
from engine.training import run_folder
from tests.commands import Command, CommandServer
from tests.smooth_student import INTERRUPT
from tests.tiny_recipe import write_recipe

STEPS, RTOL = 50, 1e-5
SETTINGS = {
    "seed": "1",  # with 0, a value of the alignment head is so near the kink of a ReLU that rounding shows
    "compute.runtime": "torch",
    "compute.precision": "fp32",
    "student.name": "tests.smooth_student:smooth",
    "student.feature": "6",
}


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a bank in which some labels are the teacher's; its recipe logs every step."""
    folder = tmp_path_factory.mktemp("bank")
    schedule = {"rounds": 1, "kd_steps": STEPS, "checkpoint_steps": 1}
    recipe = write_recipe(folder / "recipe", schedule=schedule)
    arguments = ["--recipe", str(recipe), "--out", str(folder / "bank"), "--shards", "3"]
    assert main(generate, arguments) == 0
    return str(folder / "bank")


Distill = Callable[..., list[Command]]


@pytest.fixture(scope="module")
def distill(commands: CommandServer, bank: str) -> Distill:
    """Return `distill(out, processes, *flags)`, which runs the ranks until they end."""

    def distill(
        out: Path, processes: int, *flags: str, environment: Mapping[str, str] | None = None
    ) -> list[Command]:
        settings = {**SETTINGS, "compute.threads": str(3 - processes)}
        arguments = ["--bank", bank, "--out", str(out), *(f"--{k}={v}" for k, v in settings.items()), *flags]
        return commands.ranks("engine.distill", arguments, processes=processes, environment=environment)

    return distill


def assert_success(ranks: list[Command]) -> None:
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), errors(ranks)


def errors(ranks: list[Command]) -> str:
    return "".join(rank.communicate()[1] for rank in ranks)


@pytest.fixture(scope="module")
def alone(distill: Distill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with one process and two threads."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert_success(distill(out, 1))
    return out


def assert_same_curves(ours: Path, theirs: Path) -> None:
    for name in ("loss", "kl", "ce", "feature", "label_agreement"):
        curve, other = losses(ours, name), losses(theirs, name)
        assert list(curve) == list(other) == list(range(1, STEPS + 1))
        assert list(curve.values()) == pytest.approx(list(other.values()), rel=RTOL, abs=1e-9), name


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(alone: Path, distill: Distill, tmp_path: Path) -> None:
    assert_success(distill(tmp_path / "two", 2))
    assert_same_curves(tmp_path / "two", alone)
    curve, agreement = losses(alone), losses(alone, "label_agreement").values()
    assert curve[STEPS] < 0.8 * curve[1]
    assert 0 < min(agreement) < max(agreement) < 1
    ours, theirs = (load_file(out / "student.safetensors") for out in (tmp_path / "two", alone))
    assert list(ours) == list(theirs)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["recipe"] == "tiny"


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_continues_with_another_number_of_processes(
    before: int, after: int, alone: Path, distill: Distill, tmp_path: Path
) -> None:
    interrupted = distill(tmp_path, before, environment={INTERRUPT: "21"})  # one at loading
    assert {rank.returncode for rank in interrupted} == {130}
    assert errors(interrupted).count(f"to continue, repeat the command with --out {tmp_path} --resume") == 1
    assert list(losses(tmp_path)) == list(range(1, 21))
    assert_success(distill(tmp_path, after, "--resume"))
    assert_same_curves(tmp_path, alone)


def test_a_batch_that_does_not_divide_is_one_line(distill: Distill, tmp_path: Path) -> None:
    refused = distill(tmp_path / "out", 2, "--distill.batch_size", "9")
    assert {rank.returncode for rank in refused} == {2}
    assert errors(refused) == (
        "error: distill.batch_size is 9, which 2 processes cannot divide equally; set it to a multiple of 2, "
        "such as 8, or start another number of processes\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_ends_all_processes_with_one_line(distill: Distill, tmp_path: Path) -> None:
    with run_folder.lock_run(tmp_path, resume=True):
        refused = distill(tmp_path, 2, "--resume")
    assert {rank.returncode for rank in refused} == {2}
    assert errors(refused).startswith(f"error: --out {tmp_path} is in use by another process;")
    assert errors(refused).count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.slow
def test_torchrun_starts_the_ranks(bank: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "compute.threads": "1", "schedule.kd_steps": "4"}
    flags = [f"--{key}={value}" for key, value in settings.items()]
    ended = torchrun("engine.distill", ["--bank", bank, "--out", str(tmp_path), *flags], processes=2)
    assert ended.returncode == 0, ended.stderr
    assert list(losses(tmp_path)) == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [("mistake", 2, "error: bank b: shard 3 is damaged\n"), ("defect", 1, "KeyError: 'b'\n")],
)
def test_an_error_of_one_rank_ends_all(kind: str, code: int, words: str) -> None:
    ended = torchrun("tests.engine.one_rank_fails", [kind], processes=2)
    assert ended.stdout == "working\n"
    assert ended.stderr.count(words) == 1
    assert f"exitcode  : {code} " in ended.stderr.partition("Root Cause")[2]
    ranks_own = ended.stderr.partition('Traceback (most recent call last):\n  File "<frozen runpy>')[0]
    assert ranks_own.count("Traceback") == (kind == "defect")


def test_the_whole_loop_refuses_several_processes(commands: CommandServer, tmp_path: Path) -> None:
    refused = commands.ranks("engine.run", ["--out", str(tmp_path / "out")], processes=2)
    assert {rank.returncode for rank in refused} == {2}
    assert errors(refused).count("error: engine.run supports one process only;") == 1
    assert not (tmp_path / "out").exists()
