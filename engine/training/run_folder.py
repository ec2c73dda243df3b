"""The folder that a run leaves, and the check that a command may go on in one."""

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import recipes
from engine.errors import UserError
from engine.provenance import KEYS
from engine.recipe import CONFIG, Recipe, differences, gives_recipe, load_recipe, to_yaml
from engine.training.run_record import RunRecord, sha256_of
from export.locks import exclusive_if_free

if TYPE_CHECKING:
    from torch import nn

BANK = "bank"
CHECKPOINTS = "checkpoints"
SCALARS = "tb"
STUDENT = "student.safetensors"
VARIATIONS = "variations.png"
LOCK = ".lock"

OF_MACHINE = ("compute.", "tensorrt.", "feed.kind:", "feed.threads:")
"""How the settings begin that say where and how to compute, not what."""
OF_NUMBERS = ("precision", "runtime_precision", "kernels", "compile")
"""Of compute: what decides the numbers on any machine."""


def check(folder: Path, recipe: Recipe, *, resume: bool, free: tuple[str, ...] = ()) -> None:
    """Makes sure that `folder` is new, or holds the beginning of just this run.

    Settings that begin with one of `free` may have changed.

    Raises UserError that names the folder, or the first setting that differs, and the remedies.
    """
    config = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give a folder")
    if not _is_used(folder, resume=resume):
        return
    if not config.exists():
        raise UserError(
            f"--resume: {folder} has no {CONFIG}, so it is no run to continue; give another --out"
        )
    found = differences(load_recipe(str(config)), recipe)
    difference = next((each for each in found if not each.startswith(free)), None)
    if difference:
        raise UserError(
            f"--resume: this command differs from {config} in {difference};"
            " leave out --recipe and the flags that differ, since --resume takes the run's own settings,"
            " or give another --out"
        )


def own_settings(folder: Path) -> dict[str, Any]:
    """The recipe in a run's config.yaml, as nested mappings. Raises UserError if it has none."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"--run {folder} has no {CONFIG}; give the folder of a finished run")
    return recipes.read(str((folder / CONFIG).resolve()))


def run_to_resume(arguments: Sequence[str], default: str) -> Path | None:
    """The folder of the run that `--resume` continues, in `default` unless `--out` names it.

    None without `--resume`, and as long as there is no run.
    """
    picker = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    picker.add_argument("--out", default=default)
    picker.add_argument("--resume", action="store_true")
    given = picker.parse_known_args(arguments)[0]
    folder = Path(given.out)
    return folder if given.resume and (folder / CONFIG).is_file() else None


def settings_to_resume(folder: Path | None, arguments: Sequence[str]) -> dict[str, Any] | None:
    """The settings of the run in `folder`; None without one, or if `--recipe` names others to compare."""
    return None if folder is None or gives_recipe(arguments) else own_settings(folder)


def without_machine(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that say where to compute, which another machine settles for itself."""
    kept = {name: value for name, value in settings.items() if name != "tensorrt"}
    compute, feed = settings.get("compute", {}), settings.get("feed", {})
    kept["compute"] = {name: compute[name] for name in OF_NUMBERS if name in compute}
    kept["feed"] = {name: value for name, value in feed.items() if name not in ("kind", "threads")}
    return kept


def by_hash(folder: Path) -> tuple[str, ...]:
    """How the settings begin that name files which the run's record has by hash: a copy will do."""
    weights = RunRecord.read(folder).weights
    return tuple(f"{KEYS[part]}:" for part, fact in weights.items() if part in KEYS and fact["sha256"])


def require_agreement(folder: Path, recipe: Recipe, *, free: tuple[str, ...]) -> None:
    """Refuse a recipe or flags that contradict the finished run in `folder`.

    Settings that begin with one of `free` may differ. Raises UserError that names both sides.
    """
    found = differences(load_recipe(str(folder / CONFIG)), recipe)
    difference = next((each for each in found if not each.startswith(free)), None)
    if difference:
        raise UserError(
            f"--run {folder}: this command differs from its {CONFIG} in {difference};"
            " leave out --recipe and the flags that differ, since --run brings the run's own settings"
        )


def require_student(folder: Path, record: RunRecord) -> Path:
    """The absolute path of the run's student. Raises UserError if it is missing or not the run's own."""
    path = (folder / STUDENT).resolve()
    if not path.is_file():
        raise UserError(f"--run {folder} has no {STUDENT}; give the folder of a finished run")
    if record.student_sha256 and (found := sha256_of(path)) != record.student_sha256:
        raise UserError(
            f"--run {folder}: {STUDENT} is not what this run trained: its sha256 was "
            f"{record.student_sha256[:12]}, now it is {found[:12]}; restore it, or let the run's command "
            "with --resume write it again"
        )
    return path


@contextmanager
def alone(folder: Path, *, resume: bool) -> Iterator[None]:
    """Keeps other processes out of `folder`, which is made, until the context ends.

    Raises UserError where one is at work in it or, without `resume`, has been since `check`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_if_free(folder / LOCK) as free:
        if not free:
            raise UserError(
                f"--out {folder} is in use by another process; wait for its end or give another --out"
            )
        _is_used(folder, resume=resume)
        yield


def _is_used(folder: Path, *, resume: bool) -> bool:
    """Raises UserError where it is, and no run is to be continued."""
    used = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if used and not resume:
        raise UserError(f"--out {folder} is not empty; continue that run with --resume or give another --out")
    return used


def commit_config(folder: Path, recipe: Recipe, record: RunRecord) -> None:
    """Writes what the run is made with and the recipe as resolved: from now on the folder is a run."""
    from engine.atomic import replacing

    record = replace(record, student_sha256=RunRecord.read(folder).student_sha256)
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(to_yaml(recipe), encoding="utf-8")
    record.write(folder)


def save_student(folder: Path, network: "nn.Module") -> None:
    """Writes the student's weights, whole or not at all, and their hash into the run's record."""
    from safetensors.torch import save_file

    from engine.atomic import replacing

    # each tensor by itself: safetensors refuses those that share memory, as tied layers do
    state = {name: value.cpu().clone().contiguous() for name, value in network.state_dict().items()}
    with replacing(folder / STUDENT) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    RunRecord.read(folder).write_student(folder, folder / STUDENT)
