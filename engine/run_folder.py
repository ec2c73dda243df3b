"""The folder that a run leaves, and the check that a command may go on in one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.recipe import CONFIG, Recipe, differences, load_recipe, to_yaml
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
            " repeat the first command's settings or give another --out"
        )


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


def commit_config(folder: Path, recipe: Recipe) -> None:
    """Writes the recipe as resolved: from now on the folder is a run."""
    from engine.files import replacing

    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(to_yaml(recipe), encoding="utf-8")


def save_student(folder: Path, network: "nn.Module") -> None:
    """Writes the student's weights, whole or not at all."""
    from safetensors.torch import save_file

    from engine.files import replacing

    state = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    with replacing(folder / STUDENT) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
