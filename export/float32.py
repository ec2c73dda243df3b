"""Exact float32 arithmetic: by default, torch lets some backends round float32 inputs to TF32 or bf16."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LOCK = threading.Lock()
_users = 0
_restore: Callable[[], None] | None = None


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep convolutions and matrix products from rounding float32 inputs to TF32 or bf16 inside the block.

    The setting is process-wide: it also affects other threads, whose results would then depend on timing. If
    other threads run float32 products, call `use_exact_float32` before they start. The earlier setting is
    restored when the last thread leaves.
    """
    use_exact_float32()
    try:
        yield
    finally:
        _release()


def use_exact_float32() -> None:
    """Switch to exact float32 for the rest of the process."""
    global _users, _restore
    with _LOCK:
        if _users == 0:
            _restore = _disable_rounding()
        _users += 1


def _release() -> None:
    global _users
    with _LOCK:
        _users -= 1
        if _users == 0:
            assert _restore is not None
            _restore()


def _disable_rounding() -> Callable[[], None]:
    """Turn off rounding in torch's settings and return a function that restores them.

    torch has an older and a newer set of settings. The older set is readable only while both agree, and its
    readers (inductor, `cudnn.flags`) raise otherwise. So it is changed as well if it can be read and allows
    rounding.
    """
    backends: Any = torch.backends
    tf32, products = _older(lambda: backends.cudnn.allow_tf32), _older(torch.get_float32_matmul_precision)
    switches = backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul
    before = [switch.fp32_precision for switch in switches]
    if tf32:
        backends.cudnn.allow_tf32 = False
    if products:
        torch.set_float32_matmul_precision("highest")
    for switch in switches:
        switch.fp32_precision = "ieee"

    def restore() -> None:
        if tf32:
            backends.cudnn.allow_tf32 = True
        if products:
            torch.set_float32_matmul_precision(products)
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value

    return restore


def _older(read: Callable[[], Any]) -> Any:
    """Return a setting of the older set, or None if the two sets disagree."""
    try:
        return read()
    except RuntimeError:
        return None
