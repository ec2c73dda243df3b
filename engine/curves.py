"""Write curves for TensorBoard in the calling thread, so that the caller gets the errors."""

import os
import socket
import time
from types import TracebackType
from typing import Any, Self

FLUSH_SECONDS = 10.0
"""Minimum seconds between flushes."""


class Curves:
    """An events file in `folder`, which is local or a URL that TensorBoard can open."""

    def __init__(self, folder: str) -> None:
        """Create the file. Like the other methods, raises an OSError that names the folder."""
        from tensorboard.compat import tf
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder, self._flushed = folder, time.monotonic()
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        try:
            tf.io.gfile.makedirs(folder)
            self._records: Any = RecordWriter(tf.io.gfile.GFile(f"{folder}/{name}", "wb"))
            self._write(file_version="brain.Event:2")
            self._records.flush()
        except OSError as error:
            raise self._with_folder(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError:
            if kind is None:
                raise

    def add_scalar(self, name: str, value: Any, step: int) -> None:
        """Append a point to the curve `name`. `value` is a number or a tensor with one element."""
        from torch.utils.tensorboard.summary import scalar

        try:
            self._write(step=step, summary=scalar(name, float(value)))
            if time.monotonic() >= self._flushed + FLUSH_SECONDS:
                self._records.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            raise self._with_folder(error) from error

    def close(self) -> None:
        """Flush and close the file."""
        try:
            self._records.close()
        except OSError as error:
            raise self._with_folder(error) from error

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def _with_folder(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror or str(error), self._folder)
