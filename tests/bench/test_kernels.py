"""The kernel bench on small shapes: its table and its files."""

import csv
import json
from pathlib import Path

import pytest
import torch

from bench import kernels
from bench.__main__ import command
from bench.machine import Ceiling
from bench.timing import milliseconds
from engine.cli.main import main


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BN_SHAPES", ((4, 16, 8, 8),))
    monkeypatch.setattr(kernels, "KD_SHAPES", ((8, 10),))
    monkeypatch.setattr(kernels, "CROP_SHAPES", ((4, 8, 8, 3),))
    monkeypatch.setattr(kernels, "DTYPES", (torch.float32,))
    monkeypatch.setattr(kernels, "_compiled", lambda layer: layer)  # inductor takes long
    monkeypatch.setattr(kernels, "copy_ceiling", lambda _: Ceiling(lambda: None, 1e7))
    monkeypatch.setattr(
        kernels,
        "milliseconds",
        lambda calls, device, **given: milliseconds(calls, device, **given) | {"copy": 2.0},
    )


@pytest.mark.usefixtures("small")
def test_a_crash_keeps_the_rows_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the end")

    monkeypatch.setattr(kernels, "_kd_loss", fail)
    with pytest.raises(RuntimeError, match="the end"):
        command(["kernels", "--device", "cpu", "--seconds", "0.01", "--csv", str(tmp_path / "rows.csv")])
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + 6


@pytest.mark.usefixtures("small")
def test_rows_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "rows.json"), "--csv", str(tmp_path / "rows.csv")]
    assert main(command, ["kernels", "--device", "cpu", "--seconds", "0.01", *files]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["case"], row["baseline"]) for row in rows] == [
        *(
            (f"bn_stats/{layout}", name)
            for layout in ("channels_last", "NCHW")
            for name in ("published hook", "var_mean", "inductor")
        ),
        ("kd_loss/both terms", "eager"),
        ("crop_flip", "eager"),
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["theirs"] / row["ours"])
    assert rows[0]["floor"] == pytest.approx(2.0 * 5 * (4 * 16 * 8 * 8 * 4) / 1e7)
    assert rows[-1]["floor"] == pytest.approx(2.0 * 5 * (4 * 8 * 8 * 3) / 1e7)
    assert rows[-1]["dtype"] == "uint8"
    lines = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert len(lines) == len(rows)
    assert lines[0]["torch"] == torch.__version__.split("+")[0]
    assert lines[0]["cuda"] == (torch.version.cuda or "absent")
    assert capsys.readouterr().out.count("\n| bn_stats/channels_last | [4, 16, 8, 8] | float32 |") == 3


def test_an_unknown_stage_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command, ["stages", "--stage", "magic"]) == 2
    assert (
        "--stage has 'magic'; choose from synthesize, methods, augment, filter, distill, teacher"
        in capsys.readouterr().err
    )
