"""Settings of TensorRT's engines."""

from dataclasses import dataclass
from typing import Literal

from engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TensorRtConfig:
    """How engines are built, here and by python -m export; read by runtime tensorrt alone."""

    workspace_gb: float | None = None
    """Most scratch memory of a layer, in GB; null leaves it all of the GPU's."""
    refit: Literal["no", "stripped"] = "no"
    """`stripped` keeps engines without weights, which their graphs give at loading: half the disk. Other
    weights are another engine all the same. Needs a GPU to build."""
    compute_capabilities: tuple[float | Literal["current"], ...] = ()
    """GPUs to build for, e.g. [8.6, 8.9], or [current] for the one at hand alone; none: TensorRT-RTX's list.
    Classic TensorRT always builds for the one at hand."""

    def __post_init__(self) -> None:
        if self.workspace_gb is not None and not self.workspace_gb > 0:
            raise UserError(
                f"tensorrt.workspace_gb must be above 0, got {self.workspace_gb}; null is no limit"
            )
