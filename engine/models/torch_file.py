"""Read a file written by `torch.save` without running code from it."""

import builtins
import pickle
import pickletools
import tarfile
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # torch.save writes Python 2 names
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from engine.errors import UserError

PICKLE_MARKS = (b"PK", b"\x80")  # the first bytes of a torch.save archive and of a bare pickle
LEGACY_PICKLES = 4  # a file of torch < 1.6 starts with four pickles; raw numbers follow
_KIND = "_engine_pickled_kind"


def read_torch(path: Path, field: str) -> object:
    """Return the content of a file written by `torch.save`, on the CPU.

    Tensors, containers and plain values are read. Objects of any other class (an argparse.Namespace, a numpy
    scalar, a whole module) become inert stand-ins; see `pickled_kind`. Raises a UserError that names `field`
    and the file for a corrupt file, a pickle that cannot be read without running code, or TorchScript.
    """
    try:
        if _is_torchscript(path):
            raise UserError(
                f"{field}: '{path}' is a TorchScript program, not a state dict; "
                "save torch.jit.load(FILE).state_dict() and give that file"
            )
        if tarfile.is_tarfile(path):
            raise UserError(f"{field}: '{path}' is a tar archive; unpack it and give the weight file inside")
        stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
        stand_ins = [(_stand_in(name), name) for name in sorted(_globals(path))]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # torch warns about the protocol before it refuses the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
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


def pickled_kind(value: object) -> str | None:
    """Return the full name of the class that `value` stands in for; None if it is not a stand-in."""
    kind = getattr(value, _KIND, None)
    return kind if isinstance(kind, str) else None


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type if it has no text."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _stand_in(name: str) -> type:
    """Return a class that torch's unpickler uses in place of `name`; it ignores its arguments and state.

    The unpickler sets items on plain dicts only, so an object created without arguments, which may be a kind
    of dict, becomes a dict.
    """
    is_dict = {"collections.defaultdict": True, "collections.deque": False}.get(name)

    class StandIn(list[object]):
        def __new__(cls, *args: object) -> Any:
            if args if is_dict is None else not is_dict:
                return super().__new__(cls)
            stand_in = OrderedDict[object, object]()
            vars(stand_in)[_KIND] = name
            return stand_in

        def __init__(self, *_args: object) -> None:
            super().__init__()

        def __setstate__(self, _state: object) -> None:
            pass

    setattr(StandIn, _KIND, name)
    return StandIn


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _is_torchscript(path: Path) -> bool:
    if not _is_zip(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _globals(path: Path) -> set[str]:
    """Return module.name of the classes and functions that the file's pickles refer to.

    Functions of builtins, such as eval, are left out: a file that calls one is refused.
    """
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("/data.pkl"):
                    with archive.open(name) as file:
                        return set(_globals_of(file))
        return set()
    with path.open("rb") as opened:
        return {name for _ in range(LEGACY_PICKLES) for name in _globals_of(opened)}


def _globals_of(file: IO[bytes]) -> Iterator[str]:
    """Yield the names in the pickle that starts here. If there is none, torch.load will report it."""
    try:
        for code, argument, _ in pickletools.genops(file):
            if code.name != "GLOBAL":
                continue
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            if module != "builtins" or isinstance(getattr(builtins, name, None), type):
                yield f"{module}.{name}"
    except ValueError:
        return
