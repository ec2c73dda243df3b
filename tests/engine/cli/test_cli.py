"""The commands from a user's view: exit codes, one line on stderr, and a fast --help."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engine import evaluate, run
from engine.cli.main import main
from engine.cli.resolve import resolve
from engine.config.recipe import CONFIG, to_yaml
from engine.errors import NonFiniteError, UserError
from engine.recipes.load import load_recipe

ROOT = Path(run.__file__).parents[1]


def _raise(error: BaseException):
    def command(arguments: Sequence[str]) -> None:  # noqa: ARG001
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("filter.omega must\nlie in [-1, 1]"), 2, "error: filter.omega must lie in [-1, 1]"),
        (NonFiniteError("synthesize: NaN in step 3"), 1, "error: synthesize: NaN in step 3"),
    ],
    ids=["user", "not finite"],
)
def test_expected_errors_are_one_line(error: Exception, code: int, line: str, capsys) -> None:
    assert main(_raise(error), []) == code
    assert capsys.readouterr().err == line + "\n"


def test_an_interrupt_and_a_failed_write_are_one_line(capsys) -> None:
    assert main(_raise(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert main(_raise(OSError(28, "No space left on device", "runs/x/state.pt")), []) == 1
    assert capsys.readouterr().err == (
        "error: [Errno 28] No space left on device: 'runs/x/state.pt'; free some space on that disk, "
        "then repeat the command, with --resume if it has that option\n"
    )


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        main(_raise(ZeroDivisionError()), [])


def test_success_is_zero_and_arguments_arrive() -> None:
    seen: list[str] = []
    assert main(seen.extend, ["--out", "x"]) == 0
    assert seen == ["--out", "x"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--synthesize.stepz", "3"], ["synthesize.stepz", "synthesize.steps"]),
        (["--filter.omega=1.5"], ["filter.omega", "1.5"]),
        (["--recipe", "fashon-mnist"], ["fashon-mnist", "fashion-mnist"]),
        (["--recipe"], ["--recipe", "expected one argument"]),
        (["--resum"], ["resum", "resume"]),
        (["--synthesize", "3"], ["synthesize", "section"]),
        (["stray"], ["stray"]),
        (["--compute.precision", "fp8"], ["compute.precision", "bf16", "fp8"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_run_refuses_in_one_line(arguments: list[str], words: list[str], tmp_path: Path, capsys) -> None:
    folder = tmp_path / "out"
    assert main(run.command, ["--out", str(folder), *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert all(word in line for word in words)
    assert not folder.exists()


def test_run_tells_all_wrong_settings_of_file_and_command_line(tmp_path: Path, capsys) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "class_names: [a, b]\n"
        "teacher: {name: engine:lenet, num_classes: 2, image_size: x}\n"
        "student: {num_classes: 10}\n"
        "filter: {method: clip}\n"
    )
    arguments = ["--recipe", str(file), "--out", str(tmp_path / "out")]
    assert main(run.command, [*arguments, "--distill.lr=-1", "--filter.omga", "3", "--augment.prior"]) == 2
    first, *faults = capsys.readouterr().err.splitlines()
    assert first == "error: 6 settings are wrong:"
    assert [fault[:4] for fault in faults] == ["  - "] * 6
    for words in (
        "teacher.image_size must be a whole number, [a whole number, a whole number] or null, got 'x'",
        "unknown key 'filter.omga' in the command line; did you mean 'filter.omega'?",
        "argument --augment.prior: expected one argument",
        "distill.lr is -1.0",
        "filter.model is empty",
        "student.num_classes is 10, but class_names has 2",
    ):
        assert len([fault for fault in faults if words in fault]) == 1, words
    assert not (tmp_path / "out").exists()


def _recipe():
    recipe = load_recipe("fashion-mnist", {"compute.device": "cpu", "compute.precision": "fp32"})
    return resolve(recipe)


def test_a_new_or_empty_folder_is_accepted_and_unchanged(tmp_path: Path) -> None:
    run.check(tmp_path, _recipe(), resume=False)
    run.check(tmp_path / "new", _recipe(), resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_needs_resume_and_the_same_settings(tmp_path: Path) -> None:
    recipe = _recipe()
    (tmp_path / CONFIG).write_text(to_yaml(recipe))
    with pytest.raises(UserError, match=rf"{tmp_path} is not empty.*--resume.*--out"):
        run.check(tmp_path, recipe, resume=False)
    run.check(tmp_path, recipe, resume=True)
    other = replace(recipe, distill=replace(recipe.distill, lr=0.5), seed=recipe.seed)
    with pytest.raises(UserError, match=r"config\.yaml in distill\.lr: .* -> 0\.5"):
        run.check(tmp_path, other, resume=True)


def test_a_foreign_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        run.check(tmp_path, _recipe(), resume=True)
    with pytest.raises(UserError, match=r"thesis\.tex is a file"):
        run.check(tmp_path / "thesis.tex", _recipe(), resume=False)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [([], "--run"), (["--run", "nowhere"], "nowhere has no config.yaml")],
    ids=["none", "nowhere"],
)
def test_evaluate_refuses_in_one_line(arguments: list[str], word: str, capsys) -> None:
    assert main(evaluate.command, arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert word in line


HEAVY = [
    "accelerate",
    "diffusers",
    "nvidia.dali",
    "onnx",
    "open_clip",
    "openvino",
    "pandas",
    "prometheus_client",
    "pyarrow",
    "ray",
    "tensorboard",
    "tensorrt",
    "timm",
    "torch",
    "torchvision",
    "transformers",
    "wandb",
]
HELP = """
import atexit, runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
heavy = {heavy}
atexit.register(lambda: print("imported:", *(name for name in heavy if name in sys.modules)))
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def _help(module: str, *arguments: str) -> str:
    """Return the output of `python -m MODULE ARGUMENTS --help`, then the heavy libraries that it imported."""
    command = [sys.executable, "-c", HELP.format(heavy=HEAVY), module, *arguments, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["run", "generate", "distill", "evaluate"])
def test_help_imports_no_heavy_library_and_lists_every_key(module: str) -> None:
    printed = _help(f"engine.{module}")
    assert printed.endswith("imported:\n")
    assert "--recipe" in printed or module == "evaluate"
    if module == "run":
        for key in ("--resume", "--synthesize.steps", "--filter.omega"):
            assert key in printed
        for detail in ("Device that the networks run on", "{auto,cpu,cuda}", "default: engine:wrn_16_2"):
            assert detail in " ".join(printed.split())


@pytest.mark.parametrize("command", [[], ["verify"], ["merge"]], ids=" ".join)
def test_help_of_the_bank_imports_no_heavy_library(command: list[str]) -> None:
    printed = _help("engine.bank", *command)
    assert printed.endswith("imported:\n")
    assert ("--out" if command == ["merge"] else "verify") in printed


def test_the_process_ends_with_the_code() -> None:
    command = [sys.executable, "-m", "engine.run", "--synthesize.stepz", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown key 'synthesize.stepz'")
    assert done.stderr.count("\n") == 1
