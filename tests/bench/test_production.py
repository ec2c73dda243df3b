"""The production bench on tiny networks: rows, time limits, and skipped candidates."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from bench import production, random_networks
from bench.__main__ import command
from bench.machine import Ceiling
from bench.parity import require_alike
from bench.production import measure, similarity, variations, ways
from bench.production.job import Candidate, Job
from bench.rows import Row
from bench.stages.filter import load_network
from bench.timing import in_turns, time_limit
from engine.cli.main import main
from engine.config.compute import ComputeConfig
from export.errors import RuntimeUnavailableError
from tests.bench import tiny_networks
from tests.tiny_priors import write_clip

CPU = torch.device("cpu")
FP32: dict[str, dict[str, dict[str, Any]]] = {
    "eager": {"torch fp32": {"runtime": "torch", "precision": "fp32", "compiled": False}},
    "tensorrt": {"tensorrt fp16": {"runtime": "tensorrt", "precision": "fp16", "compiled": False}},
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = (tiny_networks.UNET, tiny_networks.VAE, tiny_networks.ENCODER)
    monkeypatch.setattr(variations, "PRIORS", {"tiny": tiny})
    for module in (variations, similarity):
        monkeypatch.setattr(module, "OURS", FP32)
    monkeypatch.setattr(measure, "gemm_ceiling", lambda *_: Ceiling(lambda: None, 1e6))
    network = load_network(str(write_clip(tmp_path / "clip")))
    monkeypatch.setattr(similarity, "open_clip_network", lambda *_, **__: network)


def wanted(*ways: str) -> production.Wanted:
    return production.Wanted(prior="tiny", batches=(1, 3), steps=(2, 1), ways=ways, dtype=torch.float32)


def rows_of_stage(stage: str, *ways: str) -> list[Row]:
    config = ComputeConfig(device="cpu", runtime="torch")
    return list(production.rows([stage], wanted(*ways), config, seconds=100))


@pytest.mark.skipif(torch.cuda.is_available(), reason="TensorRT may run here")
def test_rows_of_each_vae_batch_and_number_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of_stage("augment", "eager", "tensorrt")
    assert [(row.case, row.shape) for row in rows] == [
        (f"augment/tiny, {vae} VAE, torch fp32", f"batch {batch}, {steps} steps")
        for vae in ("full", "taesd")
        for batch in (1, 3)
        for steps in (2, 1)
    ]
    assert {row.baseline for row in rows} == {"diffusers eager, float32"}
    for row in rows:
        assert row.ratio == pytest.approx(row.ours / row.theirs)
    said = capsys.readouterr().err
    assert said.count("tensorrt fp16: left out: tensorrt: this machine has no GPU") == 4


def test_both_filters_are_measured_on_all_images() -> None:
    rows = rows_of_stage("filter", "eager")
    assert [(row.case, row.shape, row.baseline) for row in rows] == [
        ("filter/ViT-B-32, torch fp32", f"batch {batch}", "open_clip eager, float32") for batch in (1, 3)
    ]


def test_operations_of_an_image_share_the_embedding_of_the_source() -> None:
    job, larger = (
        job for job in variations.jobs(wanted("eager"), tiny_networks.machine().options) if "full" in job.case
    )
    one, three = job.flops(1), larger.flops(1)
    step = job.flops(2) - job.flops(1)
    assert 0 < step - (larger.flops(2) - three) < 0.01 * step, "the timestep's embedding is shared, too"
    assert 0 < (one - three) / one < 0.05
    assert three > step


def _job(**changes: Any) -> Job:
    make = Candidate(open=lambda: lambda _: torch.eye(2), dtype="fp32")
    settings: dict[str, Any] = {
        "case": "x",
        "shape": "{steps}",
        "batch": 2,
        "steps": (1,),
        "ours": {"good": make},
        "theirs": {"theirs": make},
        "flops": lambda _: 1e6,
        "require_same": require_alike,
    }
    return Job(**settings | changes)


def _failing() -> Any:
    raise RuntimeError("no\nmemory")


def _slow() -> Any:
    time.sleep(5)


def test_a_failed_slow_or_wrong_candidate_is_reported_and_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    def candidates() -> Iterator[tuple[str, Candidate]]:
        yield "failing", Candidate(open=_failing, dtype="fp32")
        yield "slow", Candidate(open=_slow, dtype="fp32")
        yield "wrong", Candidate(open=lambda: lambda _: torch.eye(2).flip(0), dtype="fp32")
        yield "good", Candidate(open=lambda: lambda _: torch.eye(2), dtype="fp32")

    rows = list(measure.rows_of([_job(ours=dict(candidates()))], CPU, seconds=1))
    assert [row.case for row in rows] == ["x, good"]
    said = capsys.readouterr().err
    assert "x, batch 2, failing: left out: no memory\n" in said
    assert "x, batch 2, slow: left out: took more than 1 s\n" in said
    assert "x, batch 2, wrong: left out: x, wrong: cosine -1.0" in said


def test_ours_runs_under_the_process_flags_and_the_baseline_under_torchs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    seen: dict[str, set[bool]] = {"ours": set(), "theirs": set()}

    def candidate(side: str) -> Candidate:
        def make(_: int) -> torch.Tensor:
            seen[side].add(torch.backends.cudnn.deterministic)
            return torch.eye(2)

        def open_it() -> Any:
            make(0)
            return make

        return Candidate(open=open_it, dtype="fp32")

    job = _job(ours={"ours": candidate("ours")}, theirs={"theirs": candidate("theirs")})
    assert len(list(measure.rows_of([job], CPU, seconds=10))) == 1
    assert seen == {"ours": {True}, "theirs": {False}}


def test_tensorrt_without_its_package_fails_before_any_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delitem(sys.modules, "export.tensorrt.bindings", raising=False)
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    options = tiny_networks.machine().options
    ways.require_here(options)
    with pytest.raises(RuntimeUnavailableError, match="neither tensorrt >= 11 nor tensorrt_rtx"):
        ways.require_here(replace(options, runtime="tensorrt"))


def test_without_a_baseline_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = {"theirs": Candidate(open=_failing, dtype="")}
    assert not list(measure.rows_of([_job(theirs=theirs), _job(case="y", ours={})], CPU, seconds=1))
    assert "x, batch 2, theirs: left out: no memory" in capsys.readouterr().err


def test_a_time_limit_ends_with_its_block() -> None:
    with pytest.raises(TimeoutError, match=r"more than 0 s"), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.1)


def test_medians_of_single_runs_after_one_to_warm_up() -> None:
    naps = iter([0.5, 0.001, 0.5, 0.001])
    ms = in_turns({"naps": lambda: time.sleep(next(naps))}, CPU, runs=3)
    assert 1 <= ms["naps"] < 400


def test_ways_name_our_runtime_options() -> None:
    assert set(ways.BASELINES) < set(ways.OURS) == set(production.WAYS)
    assert set(random_networks.UNET_SD_1_5) == {"sample_size", "cross_attention_dim", "attention_head_dim"}
    assert "ViT-B-32" in open_clip.list_models()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "1,x"], "--batches is '1,x'; use comma-separated integers"),
        (["--steps", "0"], "--steps is '0'; use comma-separated integers"),
        (["--ways", "magic"], "--ways has 'magic'; choose from eager, compiled, tensorrt"),
        (["--stage", "distill"], "--stage has 'distill'; choose from augment, filter"),
    ],
)
def test_invalid_options_are_rejected(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, ["production", "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="TensorRT may run here")
def test_tensorrt_without_a_gpu_says_so_and_leaves_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, ["tensorrt", "--csv", str(tmp_path / "rows.csv")]) == 0
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1
    said = capsys.readouterr().out
    for engine in ("portable engine", "engine for this GPU"):
        assert f"{engine}: does not run here: tensorrt" in said
    assert "--runtime torch runs on" in said
