"""Measure the layout of engine/. `python tests/house.py [FOLDER] [--list]` prints the figures."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

CHECKS = ("faults", "contradictions")
"""Methods that check the settings of a recipe."""
SHORT_LINES = 45


@dataclass(frozen=True)
class House:
    """The modules of one package and what they import of each other."""

    root: Path
    """Folder of the package, such as engine/."""

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Path of every module by its dotted name, without the `__init__` files that hold nothing."""
        return {
            self._name(path): path
            for path in sorted(self.root.rglob("*.py"))
            if path.stem != "__init__" or len(path.read_text(encoding="utf-8").splitlines()) > 10
        }

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """Syntax tree of every module by its dotted name."""
        return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.modules.items()}

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """The modules of this package that each module imports, inside functions as well."""
        return {name: set(self._imports(tree)) for name, tree in self.trees.items()}

    def lines(self, module: str) -> int:
        """Number of lines of a module."""
        return len(self.modules[module].read_text(encoding="utf-8").splitlines())

    def importers(self, module: str) -> set[str]:
        """The modules that import a module."""
        return {name for name, imported in self.imports.items() if module in imported}

    def folder(self, module: str) -> str:
        """The folder of a module, such as `bank/`; a module at the root stands for itself."""
        path = self.modules[module].relative_to(self.root)
        return path.parts[0] if path.parent != Path() else path.stem

    @cached_property
    def folder_imports(self) -> dict[str, set[str]]:
        """The folders that each folder imports; a folder's `__main__` is a command and does not count."""
        found: dict[str, set[str]] = {self.folder(name): set() for name in self.modules}
        for name, imported in self.imports.items():
            if name.endswith(".__main__"):
                continue
            found[self.folder(name)] |= {self.folder(other) for other in imported} - {self.folder(name)}
        return found

    def circles(self) -> list[tuple[str, str]]:
        """The pairs of folders that import each other."""
        edges = self.folder_imports
        return sorted((a, b) for a in edges for b in edges[a] if a < b and a in edges[b])

    def module_circles(self) -> list[list[str]]:
        """The groups of modules that import each other, directly or through others."""
        graph = {name: imported - {name} for name, imported in self.imports.items()}
        reached = {name: _reachable(graph, name) for name in graph}
        groups = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}
        return sorted(sorted(group) for group in groups)

    def loose(self) -> list[str]:
        """The modules at the root, without `__init__`."""
        return [
            name
            for name, path in self.modules.items()
            if path.parent == self.root and path.stem != "__init__"
        ]

    def short(self) -> list[str]:
        """The modules of at most 45 lines."""
        return [name for name in self.modules if self.lines(name) <= SHORT_LINES]

    def command_line_readers(self) -> list[str]:
        """The functions that take a raw command line apart."""
        return [where for where, function in self._functions() if _reads_command_line(function)]

    def auto_resolvers(self) -> list[str]:
        """The functions, checks of a recipe aside, that compare a setting with "auto"."""
        return [
            where
            for where, function in self._functions()
            if function.name not in CHECKS and any(map(_compares_with_auto, ast.walk(function)))
        ]

    def say_parameters(self) -> list[str]:
        """The functions that take a parameter `say`."""
        return [
            where
            for where, function in self._functions()
            if any(a.arg == "say" for a in [*function.args.args, *function.args.kwonlyargs])
        ]

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.root.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def _imports(self, tree: ast.Module) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield from {full if full in self.modules else node.module} & self.modules.keys()
            elif isinstance(node, ast.Import):
                yield from {alias.name for alias in node.names} & self.modules.keys()

    def _functions(self) -> Iterator[tuple[str, ast.FunctionDef]]:
        for name, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    yield f"{name}:{node.lineno} {node.name}", node


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def _compares_with_auto(node: ast.AST) -> bool:
    return isinstance(node, ast.Compare) and any(
        isinstance(side, ast.Constant) and side.value == "auto" for side in [node.left, *node.comparators]
    )


def _reads_command_line(function: ast.FunctionDef) -> bool:
    """Whether a function parses `arguments` or splits flags off at their equals sign."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("parse_args", "parse_known_args"):
                return True
            first = node.args[0] if node.args else None
            if (
                node.func.attr in ("partition", "split")
                and isinstance(first, ast.Constant)
                and first.value == "="
            ):
                return True
    return False


def main() -> None:
    """Print one line a figure."""
    house = House(Path(sys.argv[1] if len(sys.argv) > 1 else "engine"))
    figures: dict[str, list[Any]] = {
        "files": list(house.modules),
        f"files of at most {SHORT_LINES} lines": house.short(),
        "loose modules at the root": house.loose(),
        "pairs of folders that import each other": house.circles(),
        "circles of modules": house.module_circles(),
        "functions that read the command line": house.command_line_readers(),
        "functions that compare with auto": house.auto_resolvers(),
        "signatures with say": house.say_parameters(),
    }
    for name, found in figures.items():
        print(f"{len(found):4}  {name}")
        if "--list" in sys.argv and len(found) < 100:
            print(*(f"        {item}" for item in found), sep="\n")


if __name__ == "__main__":
    main()
