"""The torch runtime: the module itself under autocast, compiled by inductor where that is asked for."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from engine.runtime.profile import joined, pieces, rows, with_fixed_batch
from engine.stages.micro_batch import is_out_of_memory
from export.float32 import exact_float32
from export.spec import DTYPES, NetworkSpec, Precision


class TorchExecutable:
    """Runs `spec.module`, which must be on `device`, in place.

    In fp32 nothing is rounded to TF32. With `compiled` inductor compiles it for the tuned batch, on a GPU
    into a CUDA graph. Smaller batches are padded to that size. A larger batch compiles again, as does one
    that fits in memory only without padding; later batches are padded to the new size.
    """

    def __init__(
        self, spec: NetworkSpec, precision: Precision, device: torch.device, *, compiled: bool = False
    ) -> None:
        self._spec, self._device = spec, device
        self._dtype = DTYPES[precision]
        self._forward: Callable[..., tuple[Tensor, ...]] = spec.module
        self._size = spec.axes()["batch"].opt if compiled else None
        self._copies = compiled and device.type == "cuda"  # the next replay would overwrite the outputs
        if compiled:
            mode = "reduce-overhead" if device.type == "cuda" else "default"
            self._forward = torch.compile(spec.module, mode=mode, dynamic=False)

    @property
    def description(self) -> str:
        return f"torch {torch.__version__} on {self._device.type}"

    @torch.no_grad()
    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        if self._size is None:
            return self._run(inputs)
        count = rows(self._spec, inputs)
        self._size = max(self._size, count)
        try:
            return self._padded(inputs, count)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            has_padding, self._size = self._size > count, 0
            if not has_padding:
                raise
        clear_device_cache(garbage_collection=True)
        self._size = count
        return self._padded(inputs, count)

    def _padded(self, inputs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        assert self._size is not None
        parts = pieces(with_fixed_batch(self._spec, self._size), inputs)
        return joined(self._spec, [self._run(part) for part in parts], count)

    def _run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        is_float32 = self._dtype == torch.float32
        exact = exact_float32() if is_float32 else nullcontext()
        with torch.autocast(self._device.type, self._dtype, enabled=not is_float32), exact:
            outputs = self._forward(*(inputs[given.name] for given in self._spec.inputs))
        wide = [output.float() for output in outputs]
        return self._spec.named([output.clone() for output in wide] if self._copies else wide)
