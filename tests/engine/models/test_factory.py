"""A factory that a run remembers is run again as long as its source is what it was; nothing is imported."""

from pathlib import Path

import pytest

from engine.cli.arguments import require_named
from engine.config.classifier import ClassifierConfig
from engine.errors import UserError
from engine.models.factory import Factory, factories

NAME = "my_package.nets:make"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its file; to import it, or its package, is an error."""
    package = tmp_path / "my_package"
    package.mkdir()
    for name in ("__init__", "nets"):
        (package / f"{name}.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return package / "nets.py"


def require(remembered: dict[str, Factory], *arguments: str) -> None:
    require_named({"student": ClassifierConfig(name=NAME)}, arguments, remembered)


def test_a_remembered_factory_need_not_be_named(module: Path) -> None:
    remembered = factories({"teacher": "timm:resnet18", "student": NAME})
    assert remembered.keys() == {"student"}
    assert set(remembered["student"].files) == {str(module), str(module.with_name("__init__.py"))}
    require(remembered)
    with pytest.raises(
        UserError, match=rf"student\.name is '{NAME}', which is code .* --student\.name {NAME}"
    ):
        require({})
    with pytest.raises(UserError, match="is code that a recipe file alone may not run"):
        require({"teacher": remembered["student"]})


@pytest.mark.parametrize("changed", ["nets.py", "__init__.py"])
def test_a_changed_one_must_be_named_again(changed: str, module: Path) -> None:
    remembered = factories({"student": NAME})
    path = module.with_name(changed)
    path.write_text("import os\n")
    with pytest.raises(UserError, match=rf"from {path}, which has changed since \(sha256 \w+, now \w+\);"):
        require(remembered)
    require(remembered, "--student.name", NAME)


def test_one_that_is_found_elsewhere_or_nowhere_must_be_named_again(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = factories({"student": NAME})
    first = tmp_path / "first"
    (first / "my_package").mkdir(parents=True)
    for path in module.parent.glob("*.py"):
        (first / "my_package" / path.name).write_bytes(path.read_bytes())
    monkeypatch.syspath_prepend(first)
    with pytest.raises(UserError, match="which is not on Python's path here"):
        require(remembered)
    assert factories({"student": "nowhere_to_be_found:make"}) == {}
