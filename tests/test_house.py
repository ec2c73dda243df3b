"""The layout of the project: imports go down only, no crumbs, every module has its line in the docs."""

import re
from pathlib import Path

import pytest

from tests.house import House

ROOT = Path(__file__).parents[1]
ENGINE = House(ROOT / "engine")
LAYERS = (
    ("errors", "seeding", "terminal", "atomic", "curves"),
    ("config", "paths", "progress"),
    ("recipes", "hardware", "distributed", "datasets", "bank"),
    ("models",),
    ("feed", "runtime"),
    ("stages",),
    ("networks",),
    ("generation", "pretraining", "inspection"),
    ("training",),
    ("loop",),
    ("cli",),
    ("exporting",),
    ("run", "inspect", "generate", "distill", "evaluate", "pretrain"),
)
"""Folders and root modules of engine/, lowest first; a module imports from its folder and lower layers."""
UPWARD = {
    ("engine.bank.__main__", "cli"): "a command",
    ("engine.datasets.fetch", "cli"): "a command, too: its name is fixed, and `main` alone imports cli",
}
"""Imports that go up, each with its reason."""
RESOLVERS = {"engine.cli.resolve", "engine.runtime.onnxruntime"}
"""Modules that give `auto` a value: the resolver, and ONNX Runtime, whose provider follows the device."""
SHORT = 40
ALONE = {
    "engine.models.lenet": "one architecture a file",
    "engine.models.vgg": "one architecture a file",
    "export.networks.classifier": "one spec a file",
    "kernels._namesake": "finds the other package of that name",
    "kernels.crop_flip.cpp": "every op has the same files",
    "kernels.crop_flip.op": "every op has the same files",
}
"""Modules of fewer than SHORT lines with one importer or none, each with the reason why it stands alone."""


def layer(folder: str) -> int:
    """Return the number of the layer that holds a folder or a module at the root."""
    return next(number for number, names in enumerate(LAYERS) if folder in names)


def top(module: str) -> str:
    """Return a module's name in LAYERS: its folder below engine/, or its own at the root."""
    return ENGINE.folder(module)


def test_every_folder_has_a_layer() -> None:
    listed = [name for names in LAYERS for name in names]
    assert sorted(listed) == sorted({top(m) for m in ENGINE.modules} - {""})


@pytest.mark.parametrize("module", sorted(ENGINE.modules))
def test_imports_go_down(module: str) -> None:
    for imported in ENGINE.imports[module]:
        if top(imported) == top(module) or (module, top(imported)) in UPWARD:
            continue
        assert layer(top(imported)) < layer(top(module)), f"{module} imports {imported}"


def test_no_two_modules_import_each_other() -> None:
    assert ENGINE.module_circles() == []


@pytest.mark.parametrize("package", ["engine", "export", "kernels", "bench"])
def test_no_crumbs(package: str) -> None:
    """A file of a few lines belongs to its only importer."""
    house = House(ROOT / package)
    found = {
        name
        for name in house.modules
        if house.lines(name) < SHORT
        and len(house.importers(name)) < 2
        and house.modules[name].stem not in ("__init__", "__main__")
    }
    assert found == {name for name in ALONE if name.split(".")[0] == package}


@pytest.mark.parametrize("package", ["engine", "export", "kernels", "bench"])
def test_every_module_has_a_line_in_architecture(package: str) -> None:
    listed: set[str] = set()
    folder = None
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"### (\S+)/", line):
            folder = heading[1]
        elif folder and (module := re.match(r"- `([\w.]+\.py)`: \S", line)):
            listed.add(f"{folder}/{module[1]}")
    paths = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
    modules = {path for path in paths if not path.endswith("__init__.py")}
    assert {
        path for path in listed if path.startswith(f"{package}/") and not path.endswith("__init__.py")
    } == modules


def test_the_figures_of_the_layout() -> None:
    assert len(ENGINE.modules) <= 195
    assert len(ENGINE.short()) <= 20
    assert len(ENGINE.loose()) <= 17
    reasoned = {tuple(sorted((top(module), folder))) for module, folder in UPWARD}
    assert set(ENGINE.circles()) <= reasoned
    assert ENGINE.say_parameters() == []
    assert {where.split(":")[0] for where in ENGINE.command_line_readers()} == {"engine.cli.arguments"}
    resolving = {where.split(":")[0] for where in ENGINE.auto_resolvers()}
    assert {name for name in resolving if not name.startswith("engine.config.")} <= RESOLVERS
