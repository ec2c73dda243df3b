"""Missing packages are found through the requirements of the installed ones."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from bench import wheels


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(site: Path, name: str, version: str, *needs: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (folder / "METADATA").write_text(
        "\n".join([*lines, *(f"Requires-Dist: {need}" for need in needs)]) + "\n"
    )


def test_an_indirect_requirement_is_named_once(site: Path) -> None:
    install(site, "tests-a", "1.0", "tests-b>=2", "tests-absent; python_version >= '3'", "tests-old<2")
    install(site, "tests-b", "2.5", "Tests_Absent", "tests-a", "never; python_version < '3'")
    install(site, "tests-old", "2.0")
    found = sorted(wheels.missing(["tests-a==7", "tests_a", "tests-nowhere"]))
    assert found == [
        "no tests-absent, which tests-a needs",
        "no tests-nowhere",
        "tests-old 2.0: tests-a needs <2",
    ]


def test_an_extra_is_followed_only_if_requested(site: Path) -> None:
    install(site, "tests-a", "1.0", "tests-absent; extra == 'more'")
    assert not list(wheels.missing(["tests-a"]))
    assert list(wheels.missing(["tests-a", "tests-a[more]"])) == ["no tests-absent, which tests-a needs"]


def test_the_roots_are_the_projects_requirements_and_the_wheels() -> None:
    names = [Requirement(line).name for line in wheels.roots()]
    assert {"torch", "diffusers", "docstring_parser", "pytest-timeout"} < set(names)
    assert "openvino" not in names


def test_roots_for_other_machines_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/gpu-requirements.txt").write_text("# wheels\nw-here==1\nw-old; python_version < '3'\n")
    here, elsewhere = "here; python_version >= '3'", "elsewhere; sys_platform == 'none'"
    project = f'[project]\ndependencies = ["{here}", "{elsewhere}", "openvino"]\n'
    (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.setattr(wheels, "ROOT", tmp_path)
    assert wheels.roots() == [here, "w-here==1", *wheels.TESTING]
