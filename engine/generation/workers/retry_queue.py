"""The queue of shards to generate, with exponential backoff for those that failed."""

import heapq
import time
from collections import Counter
from collections.abc import Iterable

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the first retry of a shard, doubled before each further one up to the maximum."""


class ShardQueue:
    """A priority queue of shards: lowest numbers first, each retried up to `retries` times."""

    def __init__(self, numbers: Iterable[int], retries: int) -> None:
        self._due = [(0.0, number) for number in sorted(numbers)]
        self._retries = retries
        self._failures: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._due)

    @property
    def pause(self) -> float:
        """Seconds until the next shard is due; infinite if the queue is empty."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else float("inf")

    @property
    def next_has_failed(self) -> bool:
        """Whether the next shard has failed before."""
        return self._failures[self._due[0][1]] > 0

    def take(self) -> int:
        """Remove and return the next shard. Call it only while `pause` is 0."""
        return heapq.heappop(self._due)[1]

    def failed(self, number: int) -> bool:
        """Count a failure. Put the shard back and return True if it has retries left."""
        self._failures[number] += 1
        if self._failures[number] > self._retries:
            return False
        pause = min(FIRST_PAUSE * 2 ** (self._failures[number] - 1), LONGEST_PAUSE)
        heapq.heappush(self._due, (time.monotonic() + pause, number))
        return True
