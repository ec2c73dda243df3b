"""A run's checkpoint: one state file and the bank file it names; the state's rename is the commit."""

from pathlib import Path
from typing import Any

import torch

from engine.errors import UserError
from engine.files import replacing
from engine.memory_bank import Bank


def save(folder: Path, phase: int, state: dict[str, Any], bank: Bank) -> None:
    """Commits phase `phase`, then removes older ones. `state` holds tensors and plain values only."""
    bank.save(_made(folder) / _bank_name(phase))
    with replacing(folder / "state.pt") as temporary:
        torch.save({"phase": phase, **state}, temporary)
    for stale in folder.glob("bank-*.safetensors"):
        if stale.name != _bank_name(phase):
            stale.unlink()


def load(folder: Path) -> tuple[dict[str, Any], Bank] | None:
    """The last committed state and its bank, None where nothing was committed.

    Raises UserError naming the file that is altered or missing.
    """
    path = folder / "state.pt"
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        phase = int(state["phase"])
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"checkpoint {path} cannot be read: {reason}; begin again in another --out"
        ) from error
    return state, Bank.load(folder / _bank_name(phase))


def _bank_name(phase: int) -> str:
    return f"bank-{phase:05}.safetensors"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
