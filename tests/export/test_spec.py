"""The resolution axes of a spec."""

import pytest

from export.errors import ExportError
from export.spec import resolution


@pytest.mark.parametrize(
    ("native", "multiple", "sizes"),
    [
        (64, 8, (32, 64, 96)),
        (24, 8, (8, 24, 32)),
        (40, 8, (16, 40, 56)),
        (8, 8, (8, 8, 8)),
        (7, 1, (3, 7, 10)),
        (1, 1, (1, 1, 1)),
    ],
)
def test_resolutions_are_multiples_from_half_to_half_more(
    native: int, multiple: int, sizes: tuple[int, int, int]
) -> None:
    axis = resolution("height", native, multiple=multiple)
    assert (axis.min, axis.opt, axis.max) == sizes
    assert (axis.name, axis.multiple) == ("height", multiple)


@pytest.mark.parametrize(("native", "multiple"), [(65, 8), (4, 8), (7, 2)])
def test_a_native_size_that_is_no_multiple_is_refused(native: int, multiple: int) -> None:
    with pytest.raises(ExportError, match=f"height is {native}, .* a multiple of {multiple};"):
        resolution("height", native, multiple=multiple)
