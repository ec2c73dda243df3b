"""What a build of an engine may be told."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from export.errors import ExportError

FILE = "model.engine"
"""Name of an engine's file."""

CURRENT = "current"
"""The compute capability of the GPU at hand."""

Refit = Literal["no", "stripped"]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Raises ExportError for values that no build can take."""

    workspace_bytes: int | None = None
    """Most scratch memory of a layer; None leaves all of the GPU's."""

    refit: Refit = "no"
    """`stripped`: the engine is stored without weights, and gets those of its graph when it is loaded."""

    compute_capabilities: tuple[str, ...] = ()
    """GPUs to build for, e.g. ("8.6", "8.9"), or ("current",); none leaves the builder's portable list."""

    def __post_init__(self) -> None:
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise ExportError(
                f"tensorrt: workspace_bytes is {self.workspace_bytes}; give a positive number or none"
            )
        if self.refit not in get_args(Refit):
            raise ExportError(f"tensorrt: refit is {self.refit!r}; give one of {', '.join(get_args(Refit))}")
        for capability in self.compute_capabilities:
            if capability != CURRENT and not re.fullmatch(r"\d+\.\d", capability):
                raise ExportError(
                    f"tensorrt: compute_capabilities has {capability!r}; give numbers like 8.9, or {CURRENT}"
                )
        if CURRENT in self.compute_capabilities and len(self.compute_capabilities) > 1:
            raise ExportError(f"tensorrt: compute_capabilities has {CURRENT} among others; give it alone")
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise ExportError("tensorrt: compute_capabilities names one twice; give each once")

    @property
    def for_current_gpu(self) -> bool:
        return CURRENT in self.compute_capabilities
