"""Sharded weights: several files under an index, as Hugging Face libraries save them. Imports no torch."""

import json
from pathlib import Path

from engine.errors import UserError

SUFFIX = ".index.json"


def weight_map(index: Path, field: str) -> dict[str, Path]:
    """Return the file of each tensor in an index such as `model.safetensors.index.json`.

    Raises a UserError that names `field` and the index if it is unreadable, or names a file that is missing
    or outside its own folder.
    """
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(key): str(name) for key, name in named.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{field}: '{index}' is not an index of weights (a JSON object with `weight_map`, the file of "
            "each tensor); fetch it again"
        ) from error
    for name in dict.fromkeys(files.values()):
        if Path(name).name != name:
            raise UserError(
                f"{field}: '{index}' names '{name}', which is not a file next to it; put all files in "
                "one folder and name them without a folder"
            )
        if not (index.parent / name).is_file():
            raise UserError(
                f"{field}: '{index}' names '{name}', which is not next to it; fetch that file as well"
            )
    return {key: index.parent / name for key, name in files.items()}


def weight_files(path: Path, field: str) -> list[Path]:
    """Return `path` and, if it is an index, the files it names. Raises UserError as `weight_map` does."""
    if not path.name.endswith(SUFFIX):
        return [path]
    return [path, *sorted(set(weight_map(path, field).values()))]
