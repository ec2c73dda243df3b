"""Imports go down only: bench, engine, export, kernels."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("kernels", "export", "engine", "bench")
UPWARD = {"export/__main__.py"}
"""`python -m export` runs a command of the engine."""


@pytest.mark.parametrize("floor", FLOORS)
def test_no_module_imports_from_above(floor: str) -> None:
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    upward = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / floor).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in UPWARD
        for name in _imported(path)
        if name.partition(".")[0] in above
    }
    assert not upward


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_the_upward_command_defines_nothing() -> None:
    body = ast.parse((ROOT / "export" / "__main__.py").read_text()).body
    assert not [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
