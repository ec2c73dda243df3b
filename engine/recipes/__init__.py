"""The shipped recipes, one YAML file each. `extends: NAME` at the top starts from another recipe."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from engine.errors import UserError

FOLDER = Path(__file__).parent
DEFAULT = "fashion-mnist"


def names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name_or_file: str) -> dict[str, Any]:
    """Read a recipe as nested mappings, merged over the one it extends; `name` defaults to the file's.

    Raises UserError for an unknown name, a file that is not a YAML mapping, or a recipe that extends itself.
    """
    return _read(_locate(name_or_file, Path()), ())


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    if path in children:
        cycle = " -> ".join(p.name for p in (*children[children.index(path) :], path))
        raise UserError(f"extends: {cycle} is a cycle; remove one of these extends lines")
    mapping = {"name": path.stem} | _load(path)
    parent = mapping.pop("extends", None)
    if parent is None:
        return mapping
    if not isinstance(parent, str):
        raise UserError(f"extends in {path} must be the name or file of one recipe, got {parent!r}")
    return merged(_read(_locate(parent, path.parent), (*children, path)), mapping)


def _locate(name_or_file: str, folder: Path) -> Path:
    """Return the file of a recipe; a relative file name is relative to `folder`."""
    if name_or_file in names():
        return FOLDER / f"{name_or_file}.yaml"
    path = folder / name_or_file
    if path.is_file():
        return path.resolve()
    near = get_close_matches(name_or_file, names(), 1)
    guess = f"did you mean '{near[0]}'? else " if near else ""
    raise UserError(f"no recipe '{name_or_file}'; {guess}give a file or one of: {', '.join(names())}")


def _load(path: Path) -> dict[str, Any]:
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path} is not UTF-8 text: {error}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not YAML: {error}") from None
    if not isinstance(mapping, dict):
        raise UserError(f"recipe {path} must be a mapping of sections, got {type(mapping).__name__}")
    return mapping


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`: mappings are merged key by key, other values are replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
