"""The Python bindings of TensorRT: `tensorrt` of version 11 or newer, else `tensorrt_rtx`.

Importing this module raises RuntimeUnavailableError if neither is installed.
"""

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from export.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = None
    with suppress(ImportError):
        import tensorrt as trt
    if trt is None or int(trt.__version__.split(".")[0]) < 11:
        try:
            import tensorrt_rtx as trt
        except ImportError as error:
            raise RuntimeUnavailableError(
                "tensorrt: neither tensorrt >= 11 nor tensorrt_rtx can be imported;"
                " pip install 'dda-engine[trt]' or choose another --runtime"
            ) from error

IS_RTX = trt.__name__ == "tensorrt_rtx"
VERSION = f"{trt.__name__} {trt.__version__}"


class _Errors(trt.ILogger):
    """Keeps the latest error messages, because failed calls return None without a reason."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=20)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity <= trt.ILogger.Severity.ERROR:
            self.lines.append(" ".join(msg.split()))

    def take(self) -> str:
        """Return the first error since the last call as one line, and clear all errors."""
        first = self.lines[0] if self.lines else "TensorRT gave no reason"
        self.lines.clear()
        return first


LOGGER = _Errors()
"""The only logger: TensorRT ignores all but the first logger of a process."""
