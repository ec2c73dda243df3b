"""Read a weight file of any supported format."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from engine.errors import UserError
from engine.models.torch_file import first_line, read_torch
from engine.models.weight_index import SUFFIX, weight_map

SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")


def read_weights(path: Path, field: str) -> object:
    """Return the content of a weight file, on the CPU: nested mappings of tensors and other values.

    An index yields one mapping of the tensors in all files it names. Raises a UserError that names `field`
    and the file for an unknown format, a corrupt file, one that could run code, or TorchScript.
    """
    if path.is_file() and path.name.endswith(SUFFIX):
        return _read_index(path, field)
    if path.is_file() and path.suffix == SAFETENSORS:
        return _read_safetensors(path, field)
    if path.is_file() and path.suffix in TORCH_SUFFIXES:
        return read_torch(path, field)
    raise UserError(
        f"{field}: '{path}' is not a file with suffix {SAFETENSORS}, {', '.join(TORCH_SUFFIXES)}, {SUFFIX}"
    )


def _read_safetensors(path: Path, field: str) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{field}: '{path}' is corrupt or truncated ({first_line(error)}); fetch it again"
        ) from error


def _read_index(index: Path, field: str) -> dict[str, object]:
    files = weight_map(index, field)
    merged: dict[str, object] = {}
    for file in dict.fromkeys(files.values()):
        if file.name.endswith(SUFFIX):
            raise UserError(f"{field}: '{index}' names '{file.name}', another index; give that one")
        content = read_weights(file, field)
        for key in (key for key, its_file in files.items() if its_file == file):
            if not isinstance(content, dict) or key not in content:
                raise UserError(
                    f"{field}: '{file}' has no `{key}`, which '{index.name}' says it has; fetch both again"
                )
            merged[key] = content[key]
    return merged
