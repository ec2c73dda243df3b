"""The folder that a run leaves, and the check that a command may go on in one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import recipes
from engine.config.decides import settings
from engine.config.recipe import CONFIG, OF_MACHINE_SECTIONS, Recipe, differences, to_yaml
from engine.errors import UserError
from engine.generation.provenance import KEYS
from engine.recipes.load import load_recipe
from engine.training.run_record import RunRecord
from export.hashed import sha256_of
from export.locks import exclusive_if_free

if TYPE_CHECKING:
    from torch import nn

BANK = "bank"
CHECKPOINTS = "checkpoints"
SCALARS = "tb"
STUDENT = "student.safetensors"
VARIATIONS = "variations.png"
LOCK = ".lock"

OF_MACHINE = tuple(
    f"{key}:"
    for key, effects in settings(Recipe).items()
    if "execution" in effects and key.partition(".")[0] in OF_MACHINE_SECTIONS
)
"""Prefixes, in `differences`, of the settings that say how and where to compute."""


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


def run_to_resume(out: str, *, resume: bool) -> Path | None:
    """Return the folder `out` if it holds a run that `--resume` continues, else None."""
    folder = Path(out)
    return folder if resume and (folder / CONFIG).is_file() else None


def without_machine(given: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those that say where to compute, which another machine resolves for itself."""
    kept = dict(given)
    for section in OF_MACHINE_SECTIONS:
        names = {key.removeprefix(f"{section}.") for key in _portable() if key.startswith(f"{section}.")}
        kept[section] = {name: value for name, value in given.get(section, {}).items() if name in names}
    return kept


def _portable() -> list[str]:
    """Return the settings that mean the same on any machine."""
    known = settings(Recipe).items()
    return [key for key, effects in known if "execution" not in effects or "numbers" in effects]


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
