"""Curves for TensorBoard, written by the thread that has the values: what fails, fails where it is seen."""

import os
import socket
import time
from types import TracebackType
from typing import Any, Self

FLUSH_SECONDS = 10.0


class Curves:
    """An events file in `folder`, local or at a URL that TensorBoard opens."""

    def __init__(self, folder: str) -> None:
        """Raises OSError that names the folder, as the other methods do."""
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
            raise self._named(error) from error

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
        """`value`: a number, or a tensor of one."""
        from torch.utils.tensorboard.summary import scalar

        try:
            self._write(step=step, summary=scalar(name, float(value)))
            if time.monotonic() >= self._flushed + FLUSH_SECONDS:
                self._records.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            raise self._named(error) from error

    def close(self) -> None:
        try:
            self._records.close()
        except OSError as error:
            raise self._named(error) from error

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror or str(error), self._folder)
