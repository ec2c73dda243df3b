"""The commit and the driver of a row, also on machines that show neither."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bench import rows

SMI = "#!/bin/sh\necho 580.159.04\n"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_the_checkouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMMIT", raising=False)
    monkeypatch.chdir(tmp_path)
    ask = ["git", "rev-parse", "--short", "HEAD"]
    bench = Path(rows.__file__).parent
    own = subprocess.run(ask, cwd=bench, capture_output=True, text=True, check=False)
    assert rows.commit() == (own.stdout.strip() or "unknown")


def test_a_commit_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMIT", "abc1234")
    assert rows.commit() == "abc1234"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(rows, "PROC_DRIVER", tmp_path / "version")
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMMIT", raising=False)
    assert rows.commit() == "unknown"


def test_the_driver_version_comes_from_the_kernel_module(folder: Path) -> None:
    (folder / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module  580.95.05  Release Build\n"
    )
    assert rows._driver() == "580.95.05"


def test_otherwise_the_driver_version_comes_from_nvidia_smi(folder: Path) -> None:
    assert rows._driver() == "absent"
    (folder / "nvidia-smi").write_text(SMI)
    (folder / "nvidia-smi").chmod(0o755)
    assert rows._driver() == "580.159.04"
