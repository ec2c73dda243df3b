"""Curves are read back by TensorBoard, and a disk that is full is one error that names their folder."""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.curves import Curves


@pytest.fixture
def _small_files() -> Iterator[None]:
    """No file may get larger than 2,000 bytes, which fails as a full disk does."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)


def test_tensorboard_reads_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Curves(str(tmp_path / "tb")) as curves:
        curves.add_scalar("loss", torch.tensor(0.5), 1)
        curves.add_scalar("loss", 0.25, 2)
    read = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(it.step, it.value) for it in read.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


@pytest.mark.usefixtures("_small_files")
def test_a_full_disk_is_an_error_of_the_caller(tmp_path: Path) -> None:
    """Without a traceback of a thread: pytest is told to fail on one."""
    curves = Curves(str(tmp_path / "tb"))
    with pytest.raises(OSError, match=f"{tmp_path}/tb"):
        for step in range(100):
            curves.add_scalar("loss", 1.0, step)
