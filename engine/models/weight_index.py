"""Weights kept in several files under an index, as Hugging Face libraries save them; no torch."""

import json
from pathlib import Path

from engine.errors import UserError

SUFFIX = ".index.json"


def weight_map(index: Path, field: str) -> dict[str, Path]:
    """The file of each tensor of `model.safetensors.index.json` or the like.

    Raises UserError naming `field` and the index for one that is unreadable, or that names a file outside its
    own folder or one that is not there.
    """
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(key): str(name) for key, name in named.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{field}: '{index}' is no index of weights: a JSON object with `weight_map`, the file of each "
            "tensor; fetch it again"
        ) from error
    for name in dict.fromkeys(files.values()):
        if Path(name).name != name:
            raise UserError(
                f"{field}: '{index}' names '{name}', which is not a file next to it; put all files in one "
                "folder and name them without one"
            )
        if not (index.parent / name).is_file():
            raise UserError(
                f"{field}: '{index}' names '{name}', which is not next to it; fetch that file, too"
            )
    return {key: index.parent / name for key, name in files.items()}


def weight_files(path: Path, field: str) -> list[Path]:
    """`path` and, if it is an index, the files that it names. Raises UserError as `weight_map` does."""
    if not path.name.endswith(SUFFIX):
        return [path]
    return [path, *sorted(set(weight_map(path, field).values()))]
