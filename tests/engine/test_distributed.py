"""`torchrun -m engine.distill` on CPUs, by gloo: two processes against one with the same global batches."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.torchrun import distill, losses, torchrun
from engine import run_folder
from engine.cli import main
from engine.generate import command as generate
from tests.smooth_student import INTERRUPT
from tests.tiny_recipe import write_recipe

STEPS, RTOL = 50, 1e-5
SETTINGS = {
    "compute.runtime": "torch",
    "compute.precision": "fp32",
    "student.name": "tests.smooth_student:smooth",
    "student.feature": "6",
}


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some of its labels are the teacher's; a recipe that logs every step."""
    folder = tmp_path_factory.mktemp("bank")
    schedule = {"rounds": 1, "kd_steps": STEPS, "checkpoint_steps": 1}
    recipe = write_recipe(folder / "recipe", schedule=schedule)
    arguments = ["--recipe", str(recipe), "--out", str(folder / "bank"), "--shards", "3"]
    assert main(generate, arguments) == 0
    return str(folder / "bank")


@pytest.fixture(scope="module")
def run(bank: str) -> Callable[..., None]:
    def run(out: Path, processes: int, *, resume: bool = False) -> None:
        distill(bank, out, SETTINGS, processes=processes, threads=3 - processes, resume=resume)

    return run


@pytest.fixture(scope="module")
def alone(run: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, two threads."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    run(out, 1)
    return out


def assert_same_curves(ours: Path, theirs: Path) -> None:
    for name in ("loss", "kl", "ce", "feature", "label_agreement"):
        curve, other = losses(ours, name), losses(theirs, name)
        assert list(curve) == list(other) == list(range(1, STEPS + 1))
        assert list(curve.values()) == pytest.approx(list(other.values()), rel=RTOL, abs=1e-9), name


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(alone: Path, run: Callable[..., None], tmp_path: Path) -> None:
    run(tmp_path / "two", 2)
    assert_same_curves(tmp_path / "two", alone)
    curve, agreement = losses(alone), losses(alone, "label_agreement").values()
    assert curve[STEPS] < 0.8 * curve[1]
    assert 0 < min(agreement) < max(agreement) < 1
    ours, theirs = (load_file(out / "student.safetensors") for out in (tmp_path / "two", alone))
    assert list(ours) == list(theirs)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["recipe"] == "tiny"


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(
    before: int,
    after: int,
    alone: Path,
    run: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(INTERRUPT, "20")
        with pytest.raises(RuntimeError, match="interrupted") as ended:
            run(tmp_path, before)
    assert str(ended.value).count(f"to continue: the same command with --out {tmp_path} --resume") == 1
    assert list(losses(tmp_path)) == list(range(1, 21))
    run(tmp_path, after, resume=True)
    assert_same_curves(tmp_path, alone)


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_one_line(bank: str, tmp_path: Path) -> None:
    """torchrun, which cannot be told to end with 2, writes in its report that the ranks did."""
    arguments = ["--bank", bank, "--out", str(tmp_path / "out"), "--distill.batch_size", "9"]
    ended = torchrun("engine.distill", arguments, processes=2)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("error: distill.batch_size is 9, which 2 processes cannot share alike;") == 1
    assert "set it to a multiple of 2, such as 8" in ended.stderr
    assert "exitcode  : 2" in ended.stderr.partition("Root Cause")[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_in_use_ends_all_processes_with_one_line(bank: str, tmp_path: Path) -> None:
    arguments = ["--bank", bank, "--out", str(tmp_path), "--compute.runtime", "torch", "--resume"]
    with run_folder.alone(tmp_path, resume=True):
        ended = torchrun("engine.distill", arguments, processes=2)
    assert ended.returncode == 1
    assert ended.stderr.count(f"error: --out {tmp_path} is in use by another process;") == 1
    assert "exitcode  : 2" in ended.stderr.partition("Root Cause")[2]
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [("mistake", 2, "error: bank b: shard 3 is damaged\n"), ("defect", 1, "KeyError: 'b'\n")],
)
def test_what_one_rank_says_ends_all_at_once(kind: str, code: int, words: str) -> None:
    ended = torchrun("tests.engine.one_rank_fails", [kind], processes=2)
    assert ended.stdout == "working\n"
    assert ended.stderr.count(words) == 1
    assert f"exitcode  : {code} " in ended.stderr.partition("Root Cause")[2]
    ranks_own = ended.stderr.partition('Traceback (most recent call last):\n  File "<frozen runpy>')[0]
    assert ranks_own.count("Traceback") == (kind == "defect")


@pytest.mark.slow
def test_the_whole_loop_refuses_several_processes(tmp_path: Path) -> None:
    ended = torchrun("engine.run", ["--out", str(tmp_path / "out")], processes=2)
    assert ended.stderr.count("error: engine.run works in one process;") == 1
    assert not (tmp_path / "out").exists()
