"""A run's checkpoint: one state file, whole or absent, whose rename is the commit."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from engine.atomic import replacing
from engine.errors import UserError

FILE = "state.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Commits `state`, tensors and plain values only, in place of the last one."""
    with replacing(folder / FILE) as temporary, temporary.open("wb") as file:
        torch.save(state, file)  # to a name its error would not say that the disk is full


def load(folder: Path) -> dict[str, Any] | None:
    """The last committed state, every byte checked; None where nothing was committed.

    Raises UserError naming the file that is altered.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:
            altered = file.testzip()
        if altered is not None:
            raise ValueError(f"{altered} does not match its checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"checkpoint {path} cannot be read: {reason}; begin again in another --out"
        ) from error
    return state
