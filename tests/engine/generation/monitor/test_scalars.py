"""The curves, read back from the files of TensorBoard and W&B."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.generation.messages import Event
from engine.generation.monitor.progress import GenerationStats
from engine.generation.monitor.scalars import Scalars, tensorboard, wandb
from tests.engine.generation.monitor.example_stats import at_work, done

ROOT = Path(__file__).parents[3]


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars = tensorboard(str(tmp_path))
    stats = at_work()
    scalars.update(stats)
    scalars.update(stats)
    stats.take(Event("a", done(8)))
    scalars.close(stats)
    read = EventAccumulator(str(tmp_path)).Reload()
    curves = {tag: [(it.step, it.value) for it in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert [step for step, _ in curves["images per second"]] == [7, 8]
    assert curves.pop("images per second")[0][1] == pytest.approx(2.4, rel=0.1)
    assert curves.pop("acceptance") == [(7, pytest.approx(120 / 216)), (8, pytest.approx(180 / 324))]
    assert curves == {
        "images kept": [(7, 144), (8, 216)],
        "retries": [(7, 1), (8, 1)],
        "workers": [(7, 1), (8, 1)],
        "failed shards": [(7, 1), (8, 1)],
        "images per second of a worker/synthesize": [(7, 6), (8, 6)],
        "images per second of a worker/augment": [(7, 18), (8, 18)],
    }


def test_a_bank_where_nothing_is_made_has_no_curve() -> None:
    logged: list[int] = []
    ended: list[bool] = []
    scalars = Scalars(lambda _, step: logged.append(step), lambda: ended.append(True))
    stats = GenerationStats(target=3, found=3)
    scalars.update(stats)
    scalars.close(stats)
    assert (logged, ended) == ([], [True])


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--tensorboard .*file: .*exists"):
        tensorboard(str(tmp_path / "file"))


def test_wandb_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'dda-engine\[wandb\]'"):
        wandb("project", "bank")


needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")


def _run(program: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in its own process, because W&B starts a service and keeps its settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=kept | {"HOME": str(folder), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


OFFLINE = """
from engine.generation.monitor.scalars import wandb
from engine.generation.messages import Event
from tests.engine.generation.monitor.example_stats import at_work, done

scalars, stats = wandb("project", "s3://bucket/bank"), at_work()
scalars.update(stats)
stats.take(Event("a", done(8)))
scalars.update(stats)
scalars.close(stats)
"""


@needs_wandb
def test_wandb_offline(tmp_path: Path) -> None:
    ended = _run(OFFLINE, tmp_path, WANDB_MODE="offline")
    assert ended.returncode == 0, ended.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = list(_records(file.read_bytes()))
    configured = [it for record in records for it in record.run.config.update if it.key == "bank"]
    assert json.loads(configured[0].value_json) == "s3://bucket/bank"
    history = [
        {"".join(it.nested_key) or it.key: json.loads(it.value_json) for it in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(it["_step"], it["images kept"], it["failed shards"]) for it in history] == [
        (7, 144, 1),
        (8, 216, 1),
    ]


def _records(data: bytes) -> Iterator:
    """Yield the records of one 32 KiB block in LevelDB's log format, after W&B's seven-byte header."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert len(data) < 2**15
    at = 7
    while at < len(data):
        _, size, _ = struct.unpack("<IHB", data[at : at + 7])
        yield Record.FromString(data[at + 7 : at + 7 + size])
        at += 7 + size


@needs_wandb
def test_wandb_without_a_login_is_one_line(tmp_path: Path) -> None:
    program = """
from engine.errors import UserError
from engine.generation.monitor.scalars import wandb

try:
    wandb("project", "bank")
except UserError as error:
    print(error)
"""
    ended = _run(program, tmp_path, WANDB_MODE="online")
    (line,) = ended.stdout.splitlines()
    assert line.startswith("--wandb project: ")
    assert line.endswith("run `wandb login`, or set WANDB_MODE=offline")
