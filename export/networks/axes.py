"""The axes that networks share."""

from export.errors import ExportError
from export.spec import Axis

BATCHES = (1, 16, 64)


def batch(sizes: tuple[int, int, int] = BATCHES) -> Axis:
    """The batch axis with (min, opt, max)."""
    return Axis(name="batch", min=sizes[0], opt=sizes[1], max=sizes[2])


def resolution(name: str, native: int, *, multiple: int = 1) -> Axis:
    """Height or width: from half of what the network was trained on to half more, in steps of `multiple`.

    Raises ExportError for a native size that is no multiple.
    """
    if native % multiple:
        raise ExportError(f"{name}: {native} is no multiple of {multiple}, by which the network divides it")
    half = max(native // 2 // multiple, 1) * multiple
    return Axis(
        name=name, min=half, opt=native, max=native + native // 2 // multiple * multiple, multiple=multiple
    )
