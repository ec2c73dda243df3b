"""The source files of a `package.module:factory`, hashed without importing it."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from export.hashed import sha256_of

LIBRARIES = ("engine", "timm", "torchvision", "hf")


@dataclass(frozen=True, kw_only=True)
class Factory:
    """A factory as it was when a run used it."""

    name: str
    """package.module:factory"""
    files: dict[str, str]
    """SHA-256 of the module and of its parent packages by absolute path; empty if Python finds no source."""

    @classmethod
    def of(cls, name: str) -> "Factory":
        """Hash the factory's current source. Nothing is imported, so none of its code runs."""
        files: dict[str, str] = {}
        modules = name.partition(":")[0].split(".")
        search_path = None
        for depth in range(1, len(modules) + 1):
            spec = PathFinder.find_spec(".".join(modules[:depth]), search_path)
            if spec is None:
                return cls(name=name, files={})
            if spec.has_location and spec.origin:
                path = Path(spec.origin).resolve()
                if not path.is_file():  # inside an archive
                    return cls(name=name, files={})
                files[str(path)] = sha256_of(path)
            search_path = spec.submodule_search_locations
        return cls(name=name, files=files)

    def change(self, now: "Factory") -> str | None:
        """Describe what differs in `now`; return None if nothing does."""
        for path, sha256 in self.files.items():
            current = now.files.get(path)
            if current != sha256:
                if current is not None:
                    return f"{path}, which has changed since (sha256 {sha256[:12]}, now {current[:12]})"
                if Path(path).is_file():
                    return f"{path}, which is not on Python's path here (set PYTHONPATH)"
                return f"{path}, which no longer exists"
        other = next((path for path in now.files if path not in self.files), None)
        return other and f"{other}, which was not used before"


def is_factory(name: str) -> bool:
    """Return whether a classifier's name refers to the user's code, not to a library."""
    return bool(name) and name.partition(":")[0] not in LIBRARIES


def factories(names: Mapping[str, str]) -> dict[str, Factory]:
    """Return, by section, the factories among `names` whose source Python finds."""
    found = {section: Factory.of(name) for section, name in names.items() if is_factory(name)}
    return {section: factory for section, factory in found.items() if factory.files}


def read_factories(fields: Mapping[str, Any]) -> dict[str, Factory]:
    """Rebuild factories from the JSON of `asdict`. Raises TypeError or ValueError for anything else."""
    return {
        str(section): Factory(
            name=str(entry["name"]), files={str(path): str(sha256) for path, sha256 in entry["files"].items()}
        )
        for section, entry in fields.items()
    }
