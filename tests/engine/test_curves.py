"""TensorBoard reads the curves, and a full disk raises one error that names their folder."""

from pathlib import Path

import pytest
import torch

from engine.curves import Curves


def test_tensorboard_reads_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Curves(str(tmp_path / "tb")) as curves:
        curves.add_scalar("loss", torch.tensor(0.5), 1)
        curves.add_scalar("loss", 0.25, 2)
    read = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(it.step, it.value) for it in read.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_an_error_of_the_caller(tmp_path: Path) -> None:
    """No other thread fails: pytest would report its exception."""
    curves = Curves(str(tmp_path / "tb"))

    def write() -> None:
        for step in range(1000):
            curves.add_scalar("loss", 1.0, step)

    with pytest.raises(OSError, match=f"{tmp_path}/tb"):
        write()
