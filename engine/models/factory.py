"""The source files of a `package.module:factory`, found without importing it."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from export.hashed import sha256_of

LIBRARIES = ("engine", "timm", "torchvision")


@dataclass(frozen=True, kw_only=True)
class Factory:
    """A factory as a run used it."""

    name: str
    """package.module:factory"""
    files: dict[str, str]
    """SHA-256 of the module and of the packages it is in, by absolute path; empty if Python finds none."""

    @classmethod
    def of(cls, name: str) -> "Factory":
        """The factory as it is now. Nothing is imported, so that none of its code runs."""
        files: dict[str, str] = {}
        modules = name.partition(":")[0].split(".")
        places = None
        for depth in range(1, len(modules) + 1):
            spec = PathFinder.find_spec(".".join(modules[:depth]), places)
            if spec is None:
                return cls(name=name, files={})
            if spec.has_location and spec.origin:
                path = Path(spec.origin).resolve()
                if not path.is_file():  # inside an archive
                    return cls(name=name, files={})
                files[str(path)] = sha256_of(path)
            places = spec.submodule_search_locations
        return cls(name=name, files=files)

    def change(self, now: "Factory") -> str | None:
        """What differs in `now`, in words; None if nothing does."""
        for path, sha256 in self.files.items():
            found = now.files.get(path)
            if found != sha256:
                if found is not None:
                    return f"{path}, which has changed since (sha256 {sha256[:12]}, now {found[:12]})"
                if Path(path).is_file():
                    return f"{path}, which is not on Python's path here (set PYTHONPATH)"
                return f"{path}, which is not there any more"
        other = next((path for path in now.files if path not in self.files), None)
        return other and f"{other}, which is another file"


def is_factory(name: str) -> bool:
    """Whether a classifier's name is code of the user's, not a network of a library."""
    return name.partition(":")[0] not in LIBRARIES


def factories(names: Mapping[str, str]) -> dict[str, Factory]:
    """Those of `names`, by section, that are factories whose source Python finds."""
    found = {section: Factory.of(name) for section, name in names.items() if is_factory(name)}
    return {section: factory for section, factory in found.items() if factory.files}


def read_factories(fields: Mapping[str, Any]) -> dict[str, Factory]:
    """From the JSON of `asdict`. Raises TypeError or ValueError for anything else."""
    return {
        str(section): Factory(name=str(one["name"]), files={str(p): str(s) for p, s in one["files"].items()})
        for section, one in fields.items()
    }
