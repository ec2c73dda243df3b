"""Reading a state dict from a file and fitting it to a network; each failure names the field and the file."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.errors import UserError

WRAPPERS = ("state_dict", "model", "net")
WRAPPER_DEPTH = 4
PREFIXES = ("module.", "_orig_mod.", "network.")  # DistributedDataParallel, torch.compile, our Classifier
PICKLE_MARKS = (b"PK", b"\x80")  # the first bytes of a torch.save archive and of a bare pickle


def read_state_dict(path: Path, field: str) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pth or .pt file, on the CPU, taken out of its wrappers.

    Raises UserError for another kind of file, a corrupt one, a pickle that could run code, and for content
    that is not a state dict.
    """
    readers = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
    reader = readers.get(path.suffix)
    if reader is None or not path.is_file():
        raise UserError(f"{field}: '{path}' is not a file with suffix {', '.join(readers)}")
    content = reader(path, field)
    for _ in range(WRAPPER_DEPTH):
        wrapped = content if isinstance(content, Mapping) else {}
        content = next((wrapped[key] for key in WRAPPERS if isinstance(wrapped.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise UserError(
            f"{field}: '{path}' holds a {type(content).__name__}, not a state dict; save the state_dict()"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{field}: '{path}' is not a state dict: `{key}` is a {type(value).__name__}, not a tensor"
            )
    return dict(content)


def _read_safetensors(path: Path, field: str) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{field}: '{path}' is corrupt or truncated ({first_line(error)}); fetch it again"
        ) from error


def _read_torch(path: Path, field: str) -> object:
    try:
        with warnings.catch_warnings():  # torch warns of the pickle protocol before it refuses the file
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails inside torch.load in a dozen ways
        with path.open("rb") as file:
            is_pickle = file.read(2).startswith(PICKLE_MARKS)
        if isinstance(error, pickle.UnpicklingError) and is_pickle:
            raise UserError(
                f"{field}: '{path}' was not loaded because unpickling it could run code; "
                "convert its state dict to .safetensors"
            ) from error
        raise UserError(
            f"{field}: '{path}' is corrupt or truncated ({first_line(error)}); fetch it again"
        ) from error


def fit(
    network: nn.Module, state: Mapping[str, Tensor], *, num_classes: int, section: str, file: Path
) -> None:
    """Copy `state` into `network`, without a prefix that all its keys share.

    Raises UserError for a missing or unexpected key and for a shape that differs, in words of its own where
    only the number of classes does; `section` is the part of the recipe that names `file`.
    """
    own = network.state_dict()
    state = _without_prefixes(state, own)
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        found = "; ".join(filter(None, [_first_of(missing, "missing"), _first_of(unexpected, "unexpected")]))
        raise UserError(f"{section}.weights: '{file}' does not fit {section}.name: {found}")
    sizes = {key: (state[key].shape, own[key].shape) for key in own if key in state}
    differing = {key: (given, mine) for key, (given, mine) in sizes.items() if given != mine}
    if differing:
        key, (given, mine) = next(iter(differing.items()))
        if all(_differ_in_classes(*pair, num_classes) for pair in differing.values()):
            raise UserError(
                f"{section}.weights: '{file}' has {given[0]} classes in `{key}`, "
                f"{section}.num_classes is {num_classes}; make them agree"
            )
        more = f" and {len(differing) - 1} more differ" if len(differing) > 1 else ""
        raise UserError(
            f"{section}.weights: '{file}' does not fit {section}.name: `{key}` is {list(given)} in the file "
            f"and {list(mine)} in the network{more}"
        )
    network.load_state_dict(state, strict=False)


def _without_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    def all_start(keys: Mapping[str, Tensor], prefix: str) -> bool:
        return bool(keys) and all(key.startswith(prefix) for key in keys)

    while extra := next((p for p in PREFIXES if all_start(state, p) and not all_start(own, p)), None):
        state = {key.removeprefix(extra): value for key, value in state.items()}
    return state


def _first_of(keys: list[str], what: str) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"`{keys[0]}`{more} {what}" if keys else ""


def _differ_in_classes(given: torch.Size, mine: torch.Size, num_classes: int) -> bool:
    return mine[:1] == (num_classes,) and len(given) == len(mine) and given[1:] == mine[1:]


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
