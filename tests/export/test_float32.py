"""Exact float32: torch's settings inside the block, and their restoration afterwards."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from export import float32
from export.float32 import exact_float32, use_exact_float32
from export.parity import reference
from export.spec import Axis, Input, NetworkSpec
from tests.rounding import as_torch_rounds

backends: Any = torch.backends
cudnn, matmul, mkldnn = backends.cudnn, backends.cuda.matmul, backends.mkldnn


@pytest.fixture(autouse=True)
def _as_torch_rounds() -> Iterator[None]:
    with as_torch_rounds():
        yield


def older(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return "unreadable"


def settings() -> dict[str, Any]:
    return {
        "conv": cudnn.conv.fp32_precision,
        "matmul": matmul.fp32_precision,
        "cpu conv": mkldnn.conv.fp32_precision,
        "cpu matmul": mkldnn.matmul.fp32_precision,
        "older conv": older(lambda: cudnn.allow_tf32),
        "older matmul": older(torch.get_float32_matmul_precision),
        "older cublas": older(lambda: matmul.allow_tf32),
    }


def set_conv(value: str) -> None:
    cudnn.conv.fp32_precision = value


def set_matmul(value: str) -> None:
    matmul.fp32_precision = value


def set_all(value: str) -> None:
    backends.fp32_precision = value


BEFORE = {
    "torch's own": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no TF32": lambda: setattr(cudnn, "allow_tf32", False),
    "newer, exact convolutions": lambda: set_conv("ieee"),
    "newer, TF32 products": lambda: set_matmul("tf32"),
    "newer, TF32 everywhere": lambda: set_all("tf32"),
    "both, which disagree": lambda: (torch.set_float32_matmul_precision("high"), set_matmul("ieee")),
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE.keys())
def test_nothing_is_rounded_inside_and_settings_are_restored_afterwards(before: Callable[[], Any]) -> None:
    before()
    found = settings()
    with exact_float32():
        inside = settings()
        with exact_float32():
            assert settings() == inside
        assert settings() == inside
    assert {value for name, value in inside.items() if not name.startswith("older")} == {"ieee"}
    assert settings() == found


@pytest.mark.parametrize("before", ["torch's own", "high", "medium", "no TF32"])
def test_the_older_settings_read_the_same_inside(before: str) -> None:
    """`cudnn.flags` reads them and raises if the two sets disagree."""
    BEFORE[before]()
    with exact_float32():
        inside = settings()
        with cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            pass
    assert (inside["older conv"], inside["older matmul"], inside["older cublas"]) == (False, "highest", False)


def test_an_error_inside_restores_the_settings() -> None:
    found = settings()
    inside = []

    def fail() -> None:
        with exact_float32():
            inside.append(settings())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside != [found]
    assert settings() == found


def test_the_last_of_two_threads_to_leave_restores_the_settings() -> None:
    """The first enters, the second enters, the first leaves."""
    found = settings()
    first, second = ExitStack(), ExitStack()
    first.enter_context(exact_float32())
    inside = settings()
    second.enter_context(exact_float32())
    first.close()
    assert settings() == inside
    second.close()
    assert settings() == found


def test_exact_float32_stays_for_the_rest_of_the_process() -> None:
    found = settings()
    use_exact_float32()
    inside = settings()
    assert inside != found
    with exact_float32():
        pass
    assert settings() == inside
    float32._release()
    assert settings() == found


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["conv", "matmul"])
def test_the_reference_on_a_gpu_is_exact(kind: str) -> None:
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    layer = nn.Conv2d(256, 64, 3) if kind == "conv" else nn.Linear(2048, 64)
    shape = (256, 8, 8) if kind == "conv" else (2048,)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.layer(x),)

    x = Input(name="x", shape=(Axis(name="batch", min=1, opt=4, max=4), *shape))
    spec = NetworkSpec(name="net", module=Network(), inputs=(x,), outputs=("y",))
    inputs = spec.example()
    wanted = layer.double()(inputs["x"].double())
    layer.float().cuda()
    on_gpu = {"x": inputs["x"].cuda()}
    error = (reference(spec, on_gpu)["y"].cpu() - wanted).norm() / wanted.norm()
    rounded = (layer(on_gpu["x"]).cpu() - wanted).norm() / wanted.norm()
    assert error < 1e-5
    if torch.cuda.get_device_capability() >= (8, 0):
        assert rounded > 1e-4, "this GPU rounds to TF32 unless it is told not to"
