"""The shards that are still to be given to a worker, and when those that failed are due again."""

import heapq
import time
from collections import Counter
from collections.abc import Iterable

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the second try of a shard, doubled before each further one."""


class ShardQueue:
    """Lowest numbers first. A shard is tried `retries` times more after it has failed once."""

    def __init__(self, numbers: Iterable[int], retries: int) -> None:
        self._due = [(0.0, number) for number in sorted(numbers)]
        self._retries = retries
        self._failures: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._due)

    @property
    def pause(self) -> float:
        """Seconds until a shard is due; infinite for none."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else float("inf")

    @property
    def next_has_failed(self) -> bool:
        """Whether the next shard has been tried before."""
        return self._failures[self._due[0][1]] > 0

    def take(self) -> int:
        """The next shard, where `pause` is 0."""
        return heapq.heappop(self._due)[1]

    def failed(self, number: int) -> bool:
        """Whether the shard will be tried again."""
        self._failures[number] += 1
        if self._failures[number] > self._retries:
            return False
        pause = min(FIRST_PAUSE * 2 ** (self._failures[number] - 1), LONGEST_PAUSE)
        heapq.heappush(self._due, (time.monotonic() + pause, number))
        return True
