"""`auto` becomes the device, precision, runtime and threads of this machine."""

import pytest
import torch

from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.distributed import open_accelerator
from engine.errors import UserError
from tests.rounding import as_torch_rounds, rounding

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.mark.parametrize(
    ("features", "precision"),
    [(["avx2", "avx512_bf16"], "bf16"), (["amx_bf16"], "bf16"), (["avx2", "avx512f"], "fp32"), ([], "fp32")],
    ids=["avx512_bf16", "amx", "avx512f", "none"],
)
def test_auto_on_a_cpu_goes_by_its_instructions(features: list[str], precision: str, monkeypatch) -> None:
    monkeypatch.setattr("kernels.cpu_features", lambda: features)
    torch.set_num_threads(2)
    used = resolve_compute(ComputeConfig(device="cpu"))
    assert used == ComputeConfig(
        device="cpu",
        precision=precision,
        runtime="openvino",
        runtime_precision=precision,
        threads=2,
        overlap=False,
    )
    assert resolve_compute(used) == used


def test_given_values_are_kept() -> None:
    given = ComputeConfig(
        device="cpu",
        precision="bf16",
        runtime="onnxruntime",
        runtime_precision="fp16",
        threads=2,
        overlap=True,
    )
    assert resolve_compute(given) == given


def test_overlap_on_a_cpu_needs_threads_to_divide() -> None:
    with pytest.raises(
        UserError, match=r"compute\.overlap is true, which divides compute\.threads, but that is 1"
    ):
        resolve_compute(ComputeConfig(device="cpu", threads=1, overlap=True))


def test_overlap_and_inductor_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"compute\.overlap and compute\.compile are both true"):
        ComputeConfig(overlap=True, compile=True)


@pytest.mark.parametrize(("compiled", "overlap"), [(False, True), (True, False)])
def test_auto_overlaps_on_a_gpu_without_inductor(
    compiled: bool, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = ComputeConfig(device="cuda", precision="fp32", runtime="torch", compile=compiled)
    assert resolve_compute(config).overlap is overlap


@as_torch_rounds()
@pytest.mark.parametrize(("precision", "convolutions"), [("fp32", "ieee"), ("bf16", "tf32")])
def test_a_run_in_fp32_on_a_gpu_is_not_rounded_to_tf32(
    precision: str, convolutions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting is global: results of one thread must not depend on what the others compute."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("accelerate.Accelerator", lambda **_: None)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    assert rounding()[0] == "tf32", "torch's default"
    open_accelerator(resolve_compute(ComputeConfig(device="cuda", precision=precision, runtime="torch")))
    assert rounding()[0] == convolutions


@NO_GPU
def test_auto_without_a_gpu_is_the_cpu() -> None:
    assert resolve_compute(ComputeConfig()).device == "cpu"


@NO_GPU
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"compute\.device is cuda.*set it to cpu"):
        resolve_compute(ComputeConfig(device="cuda"))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_accelerator_has_the_requested_precision_even_after_another_one(
    precision: str, dtype: torch.dtype
) -> None:
    for first in ("bf16", "fp32"):
        open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision=first, threads=2)))
    accelerator = open_accelerator(
        resolve_compute(ComputeConfig(device="cpu", precision=precision, threads=1))
    )
    assert accelerator.device == torch.device("cpu")
    assert torch.get_num_threads() == 1
    with accelerator.autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype
