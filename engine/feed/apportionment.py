"""How many of the first T draws each of several weighted streams has had."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]


def apportioned(weights: Sequence[float], draws: Int) -> Int:
    """int64 [K, S]: how many of the first draws[s] draws fall to each of K streams; each column sums to it.

    A pure function of `draws`, and no count ever falls: each stream in turn takes its share, rounded to the
    nearest, of what those before it left. Heaviest first, which keeps the counts of up to four streams within
    one of their shares. (Differences of rounded cumulative shares would fall now and then.)
    """
    order = np.argsort(-np.asarray(weights, np.float64), kind="stable")
    counts = np.zeros((len(weights), len(draws)), np.int64)
    left, weight_left = np.asarray(draws, np.int64), float(sum(weights))
    for stream in order[:-1]:
        share = weights[stream] / weight_left
        counts[stream] = np.floor(share * left + 0.5).astype(np.int64)
        left, weight_left = left - counts[stream], weight_left - weights[stream]
    counts[order[-1]] = left
    return counts
