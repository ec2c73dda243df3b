"""Save and load the checkpoint of a run: one file, committed by a rename."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from engine.atomic import replacing
from engine.errors import UserError

FILE = "state.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in `folder` by `state`, which holds tensors and plain values only."""
    with replacing(folder / FILE) as temporary, temporary.open("wb") as file:
        torch.save(state, file)  # with a path, torch's error would not say that the disk is full


def load(folder: Path) -> dict[str, Any] | None:
    """Return the last committed state, or None if there is none.

    Raises UserError that names the file if it is damaged; every byte is checked.
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
            f"checkpoint {path} cannot be read: {reason}; start again with another --out"
        ) from error
    return state
