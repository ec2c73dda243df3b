"""Turn what a runtime raises when it converts, compiles or runs a network into one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import UserError
from engine.runtime.micro_batch import is_out_of_memory
from export.errors import ExportError


@contextmanager
def refusals(
    network: str, runtime: str, way_out: str = "choose another --runtime, or check the image size"
) -> Iterator[None]:
    """Raise ExportError for what `runtime` raises in the block; name both, the reason and the way out.

    Too little memory and errors of the system, such as a full disk, are raised as they are.
    """
    try:
        yield
    except (ExportError, UserError, OSError):
        raise
    except Exception as error:  # the libraries' errors share no base class
        if is_out_of_memory(error):
            raise
        raise ExportError(f"{network}: {runtime} refuses the network: {_reason(error)}; {way_out}") from error


def _reason(error: Exception) -> str:
    """Return the last line of the first paragraph: before it, OpenVINO lists the places in its source."""
    paragraph = str(error).strip().partition("\n\n")[0].splitlines()
    return (paragraph[-1].strip() if paragraph else type(error).__name__).rstrip(".")
