"""The options of an engine build."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from export.errors import ExportError

FILE = "model.engine"
"""File name of an engine."""

CURRENT = "current"
"""Stands for the compute capability of the current GPU."""

Refit = Literal["no", "stripped"]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The options of an engine build. Raises ExportError for invalid values."""

    workspace_bytes: int | None = None
    """Maximum scratch memory of a layer in bytes; None allows all of the GPU's memory."""

    refit: Refit = "no"
    """`stripped` stores the engine without weights and loads them from its graph."""

    compute_capabilities: tuple[str, ...] = ()
    """GPUs to build for, such as ("8.6", "8.9") or ("current",). Empty means the builder's portable list."""

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise ExportError(
                f"tensorrt: workspace_bytes is {self.workspace_bytes}; set a positive number or remove it"
            )
        if self.refit not in get_args(Refit):
            raise ExportError(f"tensorrt: refit is {self.refit!r}; choose from {', '.join(get_args(Refit))}")
        for capability in self.compute_capabilities:
            if capability != CURRENT and not re.fullmatch(r"\d+\.\d", capability):
                raise ExportError(
                    f"tensorrt: compute_capabilities has {capability!r}; use numbers like 8.9, or {CURRENT}"
                )
        if CURRENT in self.compute_capabilities and len(self.compute_capabilities) > 1:
            raise ExportError(
                f"tensorrt: compute_capabilities mixes {CURRENT} with others; use {CURRENT} alone"
            )
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise ExportError("tensorrt: compute_capabilities has a duplicate; list each once")

    @property
    def for_current_gpu(self) -> bool:
        return CURRENT in self.compute_capabilities
