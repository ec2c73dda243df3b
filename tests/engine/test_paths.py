"""Where the paths of a recipe are looked for."""

from pathlib import Path

import pytest

import engine
from engine.errors import UserError
from engine.paths import PROJECT_ROOT, resolve


def test_the_working_directory_comes_before_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("engine/paths.py", "f") == PROJECT_ROOT / "engine" / "paths.py"
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "paths.py").touch()
    assert resolve("engine/paths.py", "f") == (tmp_path / "engine" / "paths.py").resolve()


def test_the_project_is_where_the_engine_is() -> None:
    assert Path(engine.__file__).resolve().parent.parent == PROJECT_ROOT


def test_folders_absolute_paths_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prior").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(str(tmp_path / "prior"), "f") == (tmp_path / "prior").resolve()
    assert resolve("~/prior", "f") == (tmp_path / "prior").resolve()


@pytest.mark.parametrize("path", ["no/such/file.pth", "/no/such/file.pth"])
def test_a_path_in_neither_place_names_the_field(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"^teacher\.weights: '{path}' does not exist \(looked in "
    ) as raised:
        resolve(path, "teacher.weights")
    assert (str(PROJECT_ROOT / "no/such") in str(raised.value)) == (not path.startswith("/"))


def test_an_empty_path_is_not_the_working_directory() -> None:
    with pytest.raises(UserError, match=r"^augment\.prior is empty"):
        resolve("", "augment.prior")
