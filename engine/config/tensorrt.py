"""Settings of TensorRT engines."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.config.checked import Checked


@dataclass(frozen=True, kw_only=True)
class TensorRtConfig(Checked):
    """How TensorRT engines are built. Other runtimes ignore these settings."""

    workspace_gb: float | None = None
    """Maximum scratch memory of a layer in GB; null allows all of the GPU's."""
    refit: Literal["no", "stripped"] = "no"
    """stripped stores engines without weights, which are loaded from the graph: half the disk space. Other
    weights still need another engine. Building needs a GPU."""
    compute_capabilities: tuple[float | Literal["current"], ...] = ()
    """Compute capabilities to build for, such as [8.6, 8.9], or [current] for this GPU only; an empty list
    uses TensorRT-RTX's own. Classic TensorRT always builds for this GPU."""

    def faults(self) -> Iterator[str]:
        if self.workspace_gb is not None and not self.workspace_gb > 0:
            yield f"tensorrt.workspace_gb must be above 0, got {self.workspace_gb}; null sets no limit"
