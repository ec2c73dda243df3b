"""`python -m bench.wheels`: list the packages that the engine and its tests need but this machine lacks.

On a machine without network, an import that fails late wastes the time of a whole part of bench/gpu.sh.
"""

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OPTIONAL = {"openvino"}
"""Packages the engine can do without."""
TESTING = ("pytest", "pytest-timeout")


def roots() -> list[str]:
    """Return what must be installed here: the project's requirements and those that come as wheels."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lines = (ROOT / "bench/gpu-requirements.txt").read_text(encoding="utf-8").splitlines()
    wheels = [line for line in lines if line and not line.startswith("#")]
    required = [line for line in project if Requirement(line).name not in OPTIONAL]
    return [line for line in (*required, *wheels, *TESTING) if _applies(Requirement(line))]


def missing(requirements: Iterable[str]) -> Iterator[str]:
    """Yield a line for each package that is missing or too old, among these and all their dependencies.

    The versions of `requirements` themselves are not checked.
    """
    waiting = [(Requirement(line), "") for line in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, needed_by = waiting.pop(0)
        wanted = {(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)} - seen
        seen |= wanted
        found = _installed(requirement.name)
        if found is None:
            if wanted:
                yield f"no {requirement.name}" + (f", which {needed_by} needs" if needed_by else "")
            continue
        if needed_by and not requirement.specifier.contains(found.version, prereleases=True):
            yield f"{requirement.name} {found.version}: {needed_by} needs {requirement.specifier}"
        waiting += [(need, requirement.name) for _, extra in wanted for need in _needs(found, extra)]


def _installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _needs(found: metadata.Distribution, extra: str) -> list[Requirement]:
    """Return the requirements of a distribution with one extra, or without extras."""
    needs = [Requirement(line) for line in found.requires or []]
    return [need for need in needs if _applies(need, extra)]


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


if __name__ == "__main__":
    lines = list(missing(roots()))
    print("\n".join(lines))
    sys.exit(bool(lines))
