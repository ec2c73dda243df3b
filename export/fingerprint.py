"""Hash what determines a graph: weights, structure, code and versions. Equal hashes mean equal graphs."""

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

from export.hashed import sha256_of
from export.spec import Input, NetworkSpec

EXPORTERS = ("torch", "onnx", "onnx_ir", "onnxscript")
PLAIN = (bool, int, float, str, bytes, complex, type(None), torch.dtype)
NOT_IN_THE_GRAPH = {"training", "name_or_path"}
"""Attributes to skip: the mode, and the folder from which transformers read the model."""


def onnx_parts(spec: NetworkSpec) -> dict[str, str]:
    """Return the parts of a graph's cache key; log lines name the changed ones when it is rebuilt."""
    return {
        "weights": weights_hash(spec.module),
        "network": _structure_hash(spec.module),
        "inputs": "; ".join(map(_input_shape, spec.inputs)),
        "outputs": ", ".join(spec.outputs),
        "code": _sources_hash(spec.module),
        "exporter": ", ".join(f"{name} {metadata.version(name)}" for name in EXPORTERS),
    }


def _input_shape(given: Input) -> str:
    """Describe an input without the limits of its axes: a graph depends only on which axes vary."""
    shape = [size if isinstance(size, int) or size.min == size.max else size.name for size in given.shape]
    return f"{given.name} {[s if isinstance(s, int | str) else s.opt for s in shape]}"


def weights_hash(module: nn.Module) -> str:
    """Return a SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers."""
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
    """Hash each submodule's class, `extra_repr`, attributes and configuration, once per name it has."""
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
    """Return a value as plain types that are the same in every process; for any other object, its class."""
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
    """Return a function's name and code, and the plain values among its constants, closure and defaults."""
    code = function.__code__
    used = (*code.co_consts, *(cell.cell_contents for cell in function.__closure__ or ()))
    plain = [value for value in (*used, *(function.__defaults__ or ())) if isinstance(value, PLAIN)]
    name = f"{function.__module__}.{function.__qualname__}"
    return [name, hashlib.sha256(code.co_code).hexdigest(), code.co_names, repr(plain)]


def _config(part: nn.Module) -> dict[str, Any]:
    """Return the configuration of diffusers or transformers, without private keys such as the path."""
    config: Any = getattr(part, "config", {})
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    settings = config if isinstance(config, Mapping) else {}
    return {key: value for key, value in sorted(settings.items()) if not key.startswith("_")}


def _sources_hash(module: nn.Module) -> str:
    """Hash the source files of the submodules' classes, their libraries' versions, and our exporter."""
    classes = {base for part in module.modules() for base in type(part).__mro__}
    exporter = sorted((Path(__file__).parent / "onnx").glob("*.py"))
    files = sorted({file for kind in classes if (file := _source(kind))})
    packages = sorted({kind.__module__.partition(".")[0] for kind in classes})
    versions = [f"{name} {getattr(sys.modules.get(name), '__version__', '')}" for name in packages]
    return hashlib.sha256(f"{files_hash((*files, *map(str, exporter)))} {versions}".encode()).hexdigest()


def _source(kind: type) -> str | None:
    if kind.__module__.partition(".")[0] in ("builtins", "torch"):
        return None  # torch's version is part of "exporter"
    try:
        return inspect.getsourcefile(kind)
    except (OSError, TypeError):
        return None


@cache
def files_hash(files: tuple[str, ...]) -> str:
    """Return a SHA-256 over names and contents of files, which must not change while the process runs."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).name.encode() + bytes.fromhex(sha256_of(Path(file))))
    return digest.hexdigest()
