"""The backends under test."""

from collections.abc import Iterator

import pytest

from kernels import _native
from kernels.backend import use_backend
from tests.kernels.kd_loss.cases import INTERPRETED

BACKENDS = [
    *(f"cpp-{isa}" for isa in _native.isas()),
    "torch",
    pytest.param("triton", marks=[] if INTERPRETED else pytest.mark.gpu),
]


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Select a backend and an instruction set; the device for the logits."""
    backend, _, isa = request.param.partition("-")
    before = _native.isa()
    _native.select_isa(isa or before)
    with use_backend(backend):
        yield "cuda" if backend == "triton" and not INTERPRETED else "cpu"
    _native.select_isa(before)
