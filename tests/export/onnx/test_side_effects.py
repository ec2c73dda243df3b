"""Exporting leaves the module and torch's global state unchanged."""

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.onnx import FILE, write_onnx
from tests.export.onnx.graphs import (
    TOLERANCE,
    assert_equals_torch,
    by_value,
    images,
    run,
    spec,
)


def state(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Return everything a module holds: tensors with their addresses and bytes, modes, attributes."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    held = {
        name: (id(t), t.data_ptr(), t.dtype, t.requires_grad, t.grad, t.detach().numpy().tobytes())
        for name, t in tensors
    }
    modes = {f"mode {name}": (part.training, sorted(vars(part))) for name, part in module.named_modules()}
    return held | modes


def global_state() -> tuple[Any, ...]:
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.random.get_rng_state().numpy().tobytes(),
        logging.root.manager.disable,
        list(warnings.filters),
    )


@pytest.fixture(params=[True, False], ids=["fast path", "no fast path"])
def _fast_path(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


class Attention(nn.Module):
    """Attention that uses the fast path if it may."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, dropout=0.5)
        self.function = function

    def forward(self, x: Tensor) -> tuple[Tensor]:
        tokens = x.flatten(2).mT
        return (self.function(self.attention(tokens, tokens, tokens, need_weights=False)[0]),)


@pytest.mark.usefixtures("_fast_path")
def test_an_export_leaves_the_module_and_torch_unchanged(tmp_path: Path) -> None:
    module = Attention(torch.relu).eval()
    x = images(3, 4, 3, 5)
    held, around, computed = state(module), global_state(), module(x)[0].detach()
    write_onnx(spec(module, channels=4), "fp32", tmp_path)
    assert state(module) == held
    assert global_state() == around
    assert (module(x)[0] == computed).all()
    assert_equals_torch(module, run(tmp_path / FILE, x), x, TOLERANCE["fp32"])


@pytest.mark.usefixtures("_fast_path")
def test_a_failed_export_leaves_the_module_and_torch_unchanged(tmp_path: Path) -> None:
    module = Attention(by_value).eval()
    held, around = state(module), global_state()
    with pytest.raises(ExportError):
        write_onnx(spec(module, channels=4), "fp16", tmp_path)
    assert state(module) == held
    assert global_state() == around
