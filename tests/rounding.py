"""Whether torch may round float32 products, and a network that records this when it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from export import float32
from export.spec import Axis, Input, NetworkSpec


@contextmanager
def as_torch_rounds() -> Iterator[None]:
    """Use torch's default settings inside the block, even if this process has switched to exact float32."""
    users, float32._users = float32._users, 0
    _set_defaults()
    try:
        yield
    finally:
        _set_defaults()
        float32._users = users
        if users:
            float32._disable_rounding()


def _set_defaults() -> None:
    backends: Any = torch.backends
    backends.fp32_precision = "none"
    backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    for place in (backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul):
        place.fp32_precision = "none"


class Rounding(nn.Module):
    """Records whether convolutions and products may be rounded; raises if `fails`."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.seen: list[tuple[str, str]] = []

    def forward(self, x: Tensor) -> tuple[Tensor]:
        self.seen.append(rounding())
        if self.fails:
            raise ArithmeticError
        return (x,)


def rounding() -> tuple[str, str]:
    """Return the float32 precision of convolutions and of matrix products."""
    backends: Any = torch.backends
    return backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision


def rounding_spec(module: nn.Module) -> NetworkSpec:
    x = Input(name="x", shape=(Axis(name="batch", min=1, opt=2, max=2), 3))
    return NetworkSpec(name="net", module=module, inputs=(x,), outputs=("y",))
