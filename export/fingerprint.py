"""What a graph is made from, as hashes: weights, structure, code and versions. Equal hashes, equal graph."""

import hashlib
import inspect
import sys
from collections.abc import Mapping
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from export.spec import Input, NetworkSpec

EXPORTERS = ("torch", "onnx", "onnx_ir", "onnxscript")
PLAIN = (bool, int, float, str, bytes, complex, type(None), torch.dtype)
NOT_IN_THE_GRAPH = {"training", "name_or_path"}
"""Attributes: the mode, and the folder that transformers read a model from."""


def onnx_parts(spec: NetworkSpec) -> dict[str, str]:
    """The parts of a graph's key, by a name that a message can give as the reason to build it anew."""
    return {
        "weights": weights_hash(spec.module),
        "network": _structure_hash(spec.module),
        "inputs": "; ".join(map(_door, spec.inputs)),
        "outputs": ", ".join(spec.outputs),
        "code": _sources_hash(spec.module),
        "exporter": ", ".join(f"{name} {metadata.version(name)}" for name in EXPORTERS),
    }


def _door(given: Input) -> str:
    """What a graph depends on: which axes vary, not between which sizes."""
    shape = [size if isinstance(size, int) or size.min == size.max else size.name for size in given.shape]
    return f"{given.name} {[s if isinstance(s, int | str) else s.opt for s in shape]}"


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    parameters = module.named_parameters(remove_duplicate=False)
    tensors = dict([*parameters, *module.named_buffers(remove_duplicate=False)])
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _structure_hash(module: nn.Module) -> str:
    """Over each submodule's class, what its repr says of it, and its attributes; under each of its names."""
    digest = hashlib.sha256()
    for name, part in module.named_modules(remove_duplicate=False):
        attributes = {
            key: _described(value)
            for key, value in sorted(vars(part).items())
            if key not in NOT_IN_THE_GRAPH and not (key.startswith("_") and isinstance(value, Mapping))
        }
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        digest.update(f"{name} {kind} {part.extra_repr()} {attributes!r} {_config(part)!r};".encode())
    return digest.hexdigest()


def _described(value: Any) -> Any:
    """The value in plain types, the same in every process; of what is none of these, its class alone."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, tuple | list):
        return [_described(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, map(_described, value)))
    if isinstance(value, Mapping):
        return [(_described(key), _described(item)) for key, item in value.items()]
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(_bytes(value.detach())).hexdigest()}"
    if isinstance(value, partial):
        return [_described(part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, FunctionType):
        return _described_function(value)
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _described_function(function: FunctionType) -> Any:
    """Its name and code, and the plain values that it closes over."""
    code = function.__code__
    used = (*code.co_consts, *(cell.cell_contents for cell in function.__closure__ or ()))
    plain = [value for value in (*used, *(function.__defaults__ or ())) if isinstance(value, PLAIN)]
    name = f"{function.__module__}.{function.__qualname__}"
    return [name, hashlib.sha256(code.co_code).hexdigest(), code.co_names, repr(plain)]


def _config(part: nn.Module) -> dict[str, Any]:
    """The configuration that diffusers and transformers keep, but for where it was read from."""
    config: Any = getattr(part, "config", {})
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    settings = config if isinstance(config, Mapping) else {}
    return {key: value for key, value in sorted(settings.items()) if not key.startswith("_")}


def _sources_hash(module: nn.Module) -> str:
    """Over the files that define the submodules' classes, their libraries' versions, and our exporter."""
    classes = {base for part in module.modules() for base in type(part).__mro__}
    own = sorted((Path(__file__).parent / "onnx").glob("*.py"))
    files = sorted({file for kind in classes if (file := _source(kind))})
    packages = sorted({kind.__module__.partition(".")[0] for kind in classes})
    versions = [f"{name} {getattr(sys.modules.get(name), '__version__', '')}" for name in packages]
    return hashlib.sha256(f"{files_hash((*files, *map(str, own)))} {versions}".encode()).hexdigest()


def _source(kind: type) -> str | None:
    if kind.__module__.partition(".")[0] in ("builtins", "torch"):
        return None  # torch's version is a part of its own
    try:
        return inspect.getsourcefile(kind)
    except (OSError, TypeError):
        return None


@cache
def files_hash(files: tuple[str, ...]) -> str:
    """SHA-256 over names and contents of files that stay as they are while the process runs."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).name.encode() + hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()
