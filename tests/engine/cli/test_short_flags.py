"""Short flags stand for long ones, and --trt without a GPU is refused before any work."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.cli.arguments import CommandLine
from engine.cli.main import main
from engine.errors import UserError
from engine.run import command

RTX = "--compute.runtime=tensorrt"


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (["--trt"], ["--compute.runtime=tensorrt"]),
        (["--runtime", "openvino"], ["--compute.runtime", "openvino"]),
        (["--runtime=torch", "--seed", "1"], ["--compute.runtime=torch", "--seed", "1"]),
        (["--precision", "fp32"], ["--compute.runtime_precision", "fp32"]),
        (["--batch", "auto"], ["--augment.micro_batch=auto", "--filter.micro_batch=auto"]),
        (["--batch=64", "--trt"], ["--augment.micro_batch=64", "--filter.micro_batch=64", RTX]),
        (["--batch"], ["--augment.micro_batch=", "--filter.micro_batch="]),
        (["--runtimes", "x"], ["--runtimes", "x"]),
    ],
)
def test_short_flags_are_spelled_out(short: list[str], long: list[str]) -> None:
    assert CommandLine.read(short).arguments == tuple(long)


@pytest.mark.parametrize("other", [["--runtime", "torch"], ["--compute.runtime=openvino"]])
def test_trt_with_another_runtime_is_refused(other: list[str]) -> None:
    with pytest.raises(UserError, match="--trt means --runtime tensorrt, but another runtime is also given"):
        CommandLine.read(["--trt", *other])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("arguments", [["--trt"], ["--runtime", "tensorrt"]])
def test_trt_without_a_gpu_ends_with_2_and_one_line(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = subprocess.run(
        [sys.executable, "-m", "engine.run", *arguments, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stdout == f"fashion-mnist: starting, with the results in {out}\n"
    assert found.stderr == (
        "error: tensorrt: this machine has no GPU; it can build engines (python -m export --runtime tensorrt)"
        " but not run them; use a machine with an NVIDIA GPU, or --runtime openvino\n"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runtime", "nothing"], "compute.runtime must be one of"),
        (["--precision", "int8"], "compute.runtime_precision must be one of auto, fp32, bf16, fp16"),
        (
            ["--runtime", "openvino", "--compute.compile", "true"],
            "compute.compile=true requires compute.runtime=torch (got openvino)",
        ),
        (["--batch", "some"], "augment.micro_batch must be a whole number or one of auto, got 'some'"),
        (["--batch", "0"], "augment.micro_batch must be at least 1, got 0"),
        (["--filter.micro_batch", "-2"], "filter.micro_batch must be at least 1, got -2"),
        (
            ["--compute.onnx_provider", "cuda"],
            "compute.onnx_provider=cuda requires compute.runtime=onnxruntime (got auto)",
        ),
        (["--compute.engines_gb", "0"], "compute.engines_gb must be above 0"),
        (["--tensorrt.workspace_gb", "-1"], "tensorrt.workspace_gb must be above 0"),
    ],
)
def test_bad_runtimes_are_a_line_for_each_setting(
    arguments: list[str], words: str, tmp_path: Path, capsys
) -> None:
    assert main(command, ["--out", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == (3 if arguments[0] == "--batch" else 1)  # --batch sets two


def test_a_missing_package_is_named(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.cli.resolve.find_spec", lambda _: None)
    assert main(command, ["--out", str(tmp_path / "run"), "--runtime", "onnxruntime"]) == 2
    assert (
        "compute.runtime is onnxruntime, but the package is not installed; pip install"
        in capsys.readouterr().err
    )


def test_auto_is_torch_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.cli.resolve import resolve_compute
    from engine.config.compute import ComputeConfig

    monkeypatch.setattr("engine.hardware.find_spec", lambda name: None if name == "openvino" else object())
    assert resolve_compute(ComputeConfig(device="cpu")).runtime == "torch"
