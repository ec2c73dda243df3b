"""Fused ops, networks rewritten to run on them, and two functions of the native module.

The PyPI distribution `kernels`, which diffusers and transformers probe for, has the same import name. If it
is installed too, its submodules and public names are importable from this package; see `kernels/README.md`.
"""

from pkgutil import extend_path
from typing import Any

import torch  # noqa: F401  (first: the native module shares its OpenMP threads)

from kernels._namesake import namesake
from kernels._native import cpu_features, retain_freed_memory

__all__ = ["cpu_features", "retain_freed_memory"]
__path__ = extend_path(__path__, __name__)


def __getattr__(name: str) -> Any:
    """Return a public name of the PyPI distribution `kernels`, if that is installed."""
    other = None if name.startswith("_") else namesake()
    if other is None or not hasattr(other, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(other, name)
