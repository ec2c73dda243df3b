"""The folder of a run: its files, its lock, and the checks that a command may continue or use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import recipes
from engine.atomic import replacing
from engine.config.decides import settings
from engine.config.recipe import (
    CONFIG,
    OF_MACHINE_SECTIONS,
    Recipe,
    differences,
    of_earlier_version,
    to_yaml,
)
from engine.errors import UserError
from engine.generation.provenance import KEYS
from engine.recipes.load import to_recipe
from engine.training.run_record import RunRecord
from export.hashed import sha256_of
from export.locks import exclusive_if_free

if TYPE_CHECKING:
    from torch import nn

BANK = "bank"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tb"
STUDENT = "student.safetensors"
VARIATIONS = "variations.png"
SOURCES = "sources.png"
LOCK = ".lock"

MACHINE_SETTINGS = tuple(
    f"{key}:"
    for key, effects in settings(Recipe).items()
    if "execution" in effects and key.partition(".")[0] in OF_MACHINE_SECTIONS
)
"""Prefixes, in `differences`, of the settings that choose how and where to compute."""


def check(folder: Path, recipe: Recipe, *, resume: bool, free: tuple[str, ...] = ()) -> None:
    """Check that `folder` is new or, with `resume`, holds a run with the settings of `recipe`.

    The test set may differ, as it changes neither images nor student, and so may settings that start with a
    prefix in `free`. Raises UserError that names the folder or the first other setting that differs, and what
    to do.
    """
    config = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give a folder")
    if not _is_used(folder, resume=resume):
        return
    if not config.exists():
        raise UserError(
            f"--resume: {folder} has no {CONFIG}, so there is no run to continue; give another --out"
        )
    found = differences(own_recipe(folder), recipe)
    difference = next((each for each in found if not each.startswith((*free, "evaluate."))), None)
    if difference:
        raise UserError(
            f"--resume: this command differs from {config} in {difference};"
            " leave out --recipe and the flags that differ, since --resume uses the run's own settings,"
            " or give another --out"
        )


def own_settings(folder: Path) -> dict[str, Any]:
    """Return the recipe in a run's config.yaml as nested mappings. Raises UserError if there is no file."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"--run {folder} has no {CONFIG}; give the folder of a finished run")
    return of_earlier_version(recipes.read(str((folder / CONFIG).resolve())))


def own_recipe(folder: Path) -> Recipe:
    """Return the recipe of a run, perhaps of an earlier version. Raises UserError as `own_settings` does."""
    return to_recipe(own_settings(folder), f"recipe '{folder / CONFIG}'")


def run_to_resume(out: str, *, resume: bool) -> Path | None:
    """Return the folder `out` if `--resume` continues a run in it, else None."""
    folder = Path(out)
    return folder if resume and (folder / CONFIG).is_file() else None


def without_machine(given: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those of the machine, which each machine resolves for itself."""
    kept = dict(given)
    for section in OF_MACHINE_SECTIONS:
        names = {key.removeprefix(f"{section}.") for key in _portable() if key.startswith(f"{section}.")}
        kept[section] = {name: value for name, value in given.get(section, {}).items() if name in names}
    return kept


def _portable() -> list[str]:
    """Return the settings that mean the same on any machine."""
    known = settings(Recipe).items()
    return [key for key, effects in known if "execution" not in effects or "numbers" in effects]


def hashed_settings(folder: Path) -> tuple[str, ...]:
    """Return prefixes of the settings whose files are recorded by hash, so that a copy may replace them."""
    weights = RunRecord.read(folder).weights
    return tuple(f"{KEYS[name]}:" for name, fact in weights.items() if name in KEYS and fact["sha256"])


def require_agreement(folder: Path, recipe: Recipe, *, free: tuple[str, ...]) -> None:
    """Check that `recipe` has the settings of the finished run in `folder`.

    Settings that start with a prefix in `free` may differ. Raises UserError that names both values.
    """
    found = differences(own_recipe(folder), recipe)
    difference = next((each for each in found if not each.startswith(free)), None)
    if difference:
        raise UserError(
            f"--run {folder}: this command differs from its {CONFIG} in {difference};"
            " leave out --recipe and the flags that differ, since --run uses the run's own settings"
        )


def require_student(folder: Path, record: RunRecord) -> Path:
    """Return the absolute path of the run's student. Raises UserError if it is missing or was replaced."""
    path = (folder / STUDENT).resolve()
    if not path.is_file():
        raise UserError(f"--run {folder} has no {STUDENT}; give the folder of a finished run")
    if record.student_sha256 and (found := sha256_of(path)) != record.student_sha256:
        raise UserError(
            f"--run {folder}: {STUDENT} is not the file that this run wrote: its sha256 was "
            f"{record.student_sha256[:12]}, now it is {found[:12]}; restore it, or write it again with the "
            "run's command and --resume"
        )
    return path


@contextmanager
def lock_run(folder: Path, *, resume: bool) -> Iterator[None]:
    """Create `folder` and keep other processes out of it until the context ends.

    Raises UserError if another process holds the lock or, without `resume`, has written to it since `check`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_if_free(folder / LOCK) as free:
        if not free:
            raise UserError(
                f"--out {folder} is in use by another process; wait for it to end, or give another --out"
            )
        _is_used(folder, resume=resume)
        yield


def _is_used(folder: Path, *, resume: bool) -> bool:
    """Return whether `folder` has files. Raises UserError if it has any without `resume`."""
    used = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if used and not resume:
        raise UserError(f"--out {folder} is not empty; continue that run with --resume or give another --out")
    return used


def commit_config(folder: Path, recipe: Recipe, record: RunRecord) -> None:
    """Write the resolved recipe and the record. From then on, the folder holds a run."""
    record = replace(record, student_sha256=RunRecord.read(folder).student_sha256)
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(to_yaml(recipe), encoding="utf-8")
    record.write(folder)


def save_student(folder: Path, network: "nn.Module") -> None:
    """Write the student's weights, atomically, and add their hash to the run's record."""
    from safetensors.torch import save_file

    # clone each tensor: safetensors refuses tensors that share memory, as in tied layers
    state = {name: value.cpu().clone().contiguous() for name, value in network.state_dict().items()}
    with replacing(folder / STUDENT) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    RunRecord.read(folder).write_student(folder, folder / STUDENT)
