import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

STUB = Path(__file__).parents[3] / "typings" / "tensorrt" / "__init__.pyi"


def declared(body: list[ast.stmt], path: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """Return each name of the stub as a dotted path, with its declaration."""
    for one in body:
        if isinstance(one, ast.ClassDef | ast.FunctionDef):
            yield f"{path}{one.name}", one
            yield from declared(one.body, f"{path}{one.name}.")
        elif isinstance(one, ast.AnnAssign | ast.Assign):
            target = one.target if isinstance(one, ast.AnnAssign) else one.targets[0]
            assert isinstance(target, ast.Name)
            yield f"{path}{target.id}", one


DECLARED = dict(declared(ast.parse(STUB.read_text()).body))


@pytest.mark.parametrize("path", DECLARED)
def test_the_installed_bindings_have_what_the_stub_declares(path: str) -> None:
    found: Any = pytest.importorskip("tensorrt_rtx")
    for name in path.split("."):
        found = getattr(found, name)
    one = DECLARED[path]
    if isinstance(one, ast.FunctionDef) and not one.decorator_list and not one.name.startswith("__"):
        wanted = [argument.arg for argument in one.args.args]
        assert any(wanted == names[: len(wanted)] for names in signatures(found.__doc__)), found.__doc__


def signatures(doc: str) -> list[list[str]]:
    """Return the parameter names of each overload in a pybind11 docstring."""
    lines = re.findall(r"^(?:\d+\. )?\w+\((self: .*)\) -> .*$", doc, re.MULTILINE)
    return [re.findall(r"(?:^|, )(\w+): ", line) for line in lines]


def test_signatures_are_parsed_from_docstrings() -> None:
    doc = "1. f(self: m.A, x: tuple, y: m.B = <B.C: 0>) -> bool\n2. f(self: m.A, z: list[m.D]) -> None"
    assert signatures(doc) == [["self", "x", "y"], ["self", "z"]]


def loaded(folder: Path, modules: dict[str, str]) -> str:
    """Return what a new process loads if only `modules` can be imported, with these versions."""
    logger = "class ILogger:\n    class Severity: pass\n    def __init__(self): pass\n"
    for name, version in modules.items():
        (folder / f"{name}.py").write_text(f"__version__ = {version!r}\n{logger}")
    for name in {"tensorrt", "tensorrt_rtx"} - modules.keys():
        (folder / f"{name}.py").write_text("raise ImportError")
    program = f"""
import sys
sys.path.insert(0, {str(folder)!r})
from export.errors import RuntimeUnavailableError
try:
    from export.tensorrt.bindings import IS_RTX, VERSION
    print(VERSION, IS_RTX)
except RuntimeUnavailableError as error:
    print(error)
"""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("modules", "line"),
    [
        ({"tensorrt": "11.4.0", "tensorrt_rtx": "1.7"}, "tensorrt 11.4.0 False"),
        ({"tensorrt": "10.13.2", "tensorrt_rtx": "1.7"}, "tensorrt_rtx 1.7 True"),
        ({"tensorrt_rtx": "1.7"}, "tensorrt_rtx 1.7 True"),
        (
            {"tensorrt": "10.13.2"},
            "tensorrt: neither tensorrt >= 11 nor tensorrt_rtx can be imported;"
            " pip install 'dda-engine[trt]' or choose another --runtime",
        ),
    ],
)
def test_the_newer_installed_package_is_used(tmp_path: Path, modules: dict[str, str], line: str) -> None:
    assert loaded(tmp_path, modules) == line


def test_the_log_keeps_the_first_error_in_one_line() -> None:
    pytest.importorskip("tensorrt_rtx")
    from export.tensorrt.bindings import LOGGER, trt

    severity: Any = trt.ILogger.Severity
    LOGGER.take()
    LOGGER.log(severity.WARNING, "slow")
    LOGGER.log(severity.ERROR, "first\n  line")
    LOGGER.log(severity.INTERNAL_ERROR, "second")
    assert LOGGER.take() == "first line"
    assert LOGGER.take() == "TensorRT gave no reason"
