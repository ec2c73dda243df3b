"""Limit how many images a stage processes at once; halve the number if memory runs out."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from engine.errors import OutOfMemoryError
from export.errors import ExportError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

OUT_OF_MEMORY = re.compile(
    "|".join(
        (
            "out of memory",  # CUDA, HIP, XPU and MPS, from any caller
            "OutOfMemory",  # TensorRT
            r"\b[A-Z]+_\w*ALLOC(ATION)?_FAILED\b",  # cuDNN, cuBLAS, cuSOLVER, cuSPARSE, cuFFT, cuRAND
            "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
            r"Failed to allocate (\d+ bytes of )?memory",  # ONNX Runtime's arena, OpenVINO
            "bad_alloc",  # C++, as OpenVINO and ONNX Runtime pass it on
            r"NVML_SUCCESS == .*CUDACachingAllocator",  # torch, if it cannot query NVML for the memory in use
        )
    )
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the GPU or the host ran out of memory, whichever library raised the error."""
    if isinstance(error, MemoryError):  # most bindings translate std::bad_alloc
        return True
    if not isinstance(error, RuntimeError | ExportError) and not _is_of_onnxruntime(error):
        return False
    return OUT_OF_MEMORY.search(str(error)) is not None or should_reduce_batch_size(error)


def _is_of_onnxruntime(error: BaseException) -> bool:
    # its exceptions derive directly from Exception
    return isinstance(error, Exception) and type(error).__module__.startswith("onnxruntime.")


class MicroBatch:
    """Processes the images of `stage` in pieces of up to `size`.

    If a piece does not fit in memory, `size` is halved for it and all later pieces, and the halving is logged
    at `level`.
    """

    def __init__(self, stage: str, size: int, *, level: int = logging.INFO) -> None:
        self.stage, self.size, self._level = stage, size, level

    def over(self, count: int, work: Callable[[slice], Result]) -> Iterator[Result]:
        """Yield the result of `work` on each piece of the images 0 to `count`, retrying with smaller pieces.

        Raises OutOfMemoryError if a single image does not fit in memory.
        """
        begin = 0
        while begin < count:
            piece = slice(begin, min(begin + self.size, count))
            done = self._try(work, piece)
            if done is None:
                clear_device_cache(garbage_collection=True)
                continue
            yield done[0]
            begin = piece.stop

    def _try(self, work: Callable[[slice], Result], piece: slice) -> tuple[Result] | None:
        """Return the result in a tuple, or None if memory ran out and `size` was halved."""
        try:
            return (work(piece),)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._halve(piece.stop - piece.start)
            return None

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise OutOfMemoryError(
                f"{self.stage}: out of memory with a single image; free memory on the device, use smaller"
                " networks, or choose another --compute.device"
            )
        self.size = tried // 2
        setting = f"{self.stage}.micro_batch"
        logger.log(
            self._level,
            f"{self.stage}: out of memory with {tried} images at once, continuing with {self.size};"
            f" set {setting}: {self.size} in the recipe",
        )
