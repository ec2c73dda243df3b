"""The torch runtime: the module itself under autocast, compiled by inductor where that is asked for."""

from collections.abc import Callable

import torch
from torch import Tensor

from export.spec import DTYPES, NetworkSpec, Precision


class TorchExecutable:
    """Runs `spec.module`, which must be on `device`, in place.

    With `compiled` inductor compiles it at the first call of each shape, on a GPU into a CUDA graph.
    """

    def __init__(
        self, spec: NetworkSpec, precision: Precision, device: torch.device, *, compiled: bool = False
    ) -> None:
        self._spec, self._device = spec, device
        self._dtype = DTYPES[precision]
        self._forward: Callable[..., tuple[Tensor, ...]] = spec.module
        self._copies = compiled and device.type == "cuda"  # the next replay would overwrite the outputs
        if compiled:
            mode = "reduce-overhead" if device.type == "cuda" else "default"
            self._forward = torch.compile(spec.module, mode=mode, dynamic=False)

    @property
    def description(self) -> str:
        return f"torch {torch.__version__} on {self._device.type}"

    @torch.no_grad()
    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            outputs = self._forward(*(inputs[given.name] for given in self._spec.inputs))
        wide = [output.float() for output in outputs]
        return self._spec.named([output.clone() for output in wide] if self._copies else wide)
