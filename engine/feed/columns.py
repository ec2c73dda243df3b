"""A numpy column that grows at its end."""

from typing import Any

import numpy as np
import numpy.typing as npt


class Column:
    """One value a row; `extend` costs O(1) a row, amortised.

    Its spare room is memory that was never written, which the system does not back.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._values = np.empty(0, dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> npt.NDArray[Any]:
        """[N], a view that later rows do not change."""
        return self._values[: self._size]

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Append. Raises ValueError for values that do not fit the column's dtype."""
        if not np.array_equal(values.astype(self._values.dtype), values):
            raise ValueError(f"values are outside {self._values.dtype}")
        end = self._size + len(values)
        if end > len(self._values):
            grown = np.empty(max(end, 2 * len(self._values)), self._values.dtype)
            grown[: self._size] = self.values
            self._values = grown
        self._values[self._size : end] = values
        self._size = end
