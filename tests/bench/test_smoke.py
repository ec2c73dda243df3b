"""The smoke checks run one by one, and they find wrong values."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import smoke
from bench.__main__ import command
from bench.smoke import ops, steps
from engine.cli.main import main
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.distributed import open_accelerator


@pytest.fixture
def probe(tmp_path: Path) -> smoke.Probe:
    config = ComputeConfig(device="cpu", precision="fp32", runtime="torch", threads=torch.get_num_threads())
    return smoke.Probe(accelerator=open_accelerator(resolve_compute(config)), out=tmp_path)


def test_a_failed_check_is_named_and_the_others_run(
    probe: smoke.Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(_: object) -> dict[str, object]:
        raise RuntimeError("no\nmemory")

    def needing(probe: smoke.Probe) -> dict[str, object]:
        probe.require_gpu()
        return {}

    checks = {"a": failing, "b": needing, "c": lambda _: {"ms": 1.23456, "launches": 3}}
    assert smoke.run(checks, probe, seconds=10) == ["a"]
    lines = [line.rsplit(" [", 1)[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["FAIL a: RuntimeError: no memory", "SKIP b: needs a GPU", "OK   c: ms 1.235; launches 3"]
    assert "in failing" in (probe.out / "a.trace").read_text()


def test_a_wrong_gradient_is_found(probe: smoke.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(ops.bn_stats_in_a_graph(probe)) == 2
    right = ops._forward_backward

    def wrong(x: Tensor, *given: object) -> tuple[Tensor, Tensor, Tensor]:
        y, loss, grad = right(x, *given)
        return y, loss, 1.1 * grad

    monkeypatch.setattr(ops, "_forward_backward", wrong)
    with pytest.raises(AssertionError, match=r"torch.float32: gradient differs from float64 by 1.0e-01"):
        ops.bn_stats_in_a_graph(probe)


def test_a_step_of_synthesis_is_timed_and_profiled(probe: smoke.Probe) -> None:
    (size,) = steps.SIZES_CPU
    assert set(steps.synthesis(probe)) == {f"batch {size}, ms", f"batch {size}, launches"}
    assert "aten::convolution" in (probe.out / f"synthesis-{size}.prof").read_text()


def test_the_command_runs_the_named_checks_and_returns_their_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["smoke", "--device", "cpu", "--out", str(tmp_path / "new"), "--checks", "bn_stats,waits"]
    assert main(command, arguments) == 0
    printed = capsys.readouterr().out
    assert "OK   bn_stats: [2, 16, 8, 8] float32" in printed
    assert "SKIP waits" in printed
    monkeypatch.setitem(smoke.CHECKS, "bn_stats", lambda _: 1 / 0)
    assert main(command, arguments) == 2
    assert "smoke checks failed: bn_stats; see the traces in" in capsys.readouterr().err
    assert main(command, [*arguments[:-1], "magic"]) == 2
    assert "--checks has 'magic'; choose from ceilings, bn_stats" in capsys.readouterr().err
