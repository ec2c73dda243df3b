"""A network that notes whether torch may round float32 products where it runs."""

from typing import Any

import torch
from torch import Tensor, nn

from export.spec import Axis, Input, NetworkSpec


class Rounding(nn.Module):
    """Notes whether convolutions and products may be rounded where it runs, and may fail."""

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
    """Of convolutions and of products."""
    backends: Any = torch.backends
    return backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision


def rounding_spec(module: nn.Module) -> NetworkSpec:
    x = Input(name="x", shape=(Axis(name="batch", min=1, opt=2, max=2), 3))
    return NetworkSpec(name="net", module=module, inputs=(x,), outputs=("y",))
