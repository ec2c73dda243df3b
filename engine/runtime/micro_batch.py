"""How many images a stage takes at once, and what happens when memory does not hold them."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from engine.errors import OutOfMemoryError
from export.errors import ExportError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

NO_MEMORY = re.compile(
    "|".join(
        (
            "out of memory",  # CUDA, HIP, XPU and MPS, whoever calls them
            "OutOfMemory",  # TensorRT
            r"\b[A-Z]+_\w*ALLOC(ATION)?_FAILED\b",  # cuDNN, cuBLAS, cuSOLVER, cuSPARSE, cuFFT, cuRAND
            "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
            r"Failed to allocate (\d+ bytes of )?memory",  # ONNX Runtime's arena, OpenVINO
            "bad_alloc",  # C++, as OpenVINO and ONNX Runtime pass it on
            r"NVML_SUCCESS == .*CUDACachingAllocator",  # torch, if NVML cannot tell it who has the memory
        )
    )
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the host's memory was too small for a call."""
    if isinstance(error, MemoryError):  # what std::bad_alloc becomes in most bindings
        return True
    if not isinstance(error, RuntimeError | ExportError) and not _is_of_onnxruntime(error):
        return False
    return NO_MEMORY.search(str(error)) is not None or should_reduce_batch_size(error)


def _is_of_onnxruntime(error: BaseException) -> bool:
    """Its exceptions derive from Exception alone."""
    return isinstance(error, Exception) and type(error).__module__.startswith("onnxruntime.")


class MicroBatch:
    """The size of the pieces that `stage` cuts its images into; halved, for good, where memory runs out.

    Each halving is logged at `level`.
    """

    def __init__(self, stage: str, size: int, *, level: int = logging.INFO) -> None:
        self.stage, self.size, self._level = stage, size, level

    def over(self, count: int, work: Callable[[slice], Result]) -> Iterator[Result]:
        """`work` on 0 to `count` in pieces of `size` at most; a piece that failed is done again in halves.

        Raises OutOfMemoryError where memory does not hold a single image.
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
        """None where memory ran out and `size` is less now."""
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
                f"{self.stage}: out of memory with a single image at once; free memory on the device, "
                "lower the size of the networks, or take another --compute.device"
            )
        self.size = tried // 2
        setting = f"{self.stage}.micro_batch"
        logger.log(
            self._level,
            f"{self.stage}: out of memory with {tried} images at once, going on with {self.size}; "
            f"put {setting}: {self.size} into the recipe",
        )
