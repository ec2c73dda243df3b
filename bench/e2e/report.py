"""The report of the arms: a table, the accuracies over time as lines and as a picture, and rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev

from bench.clock import MOMENTS
from bench.e2e.results import Result
from bench.rows import Row
from engine.atomic import replacing

BASELINE = "fast-dfkd"
TOLERANCE = 0.05
"""Part of the seconds by which an arm may miss them before the table says so."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A moment of a curve: means over the seeds."""

    seconds: float
    top1: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """An arm over its seeds."""

    results: Sequence[Result]

    @property
    def arm(self) -> str:
        return self.results[0].arm

    @property
    def top1(self) -> float:
        return fmean(result.top1 for result in self.results)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the top-1 over the seeds; None for one seed."""
        return stdev(result.top1 for result in self.results) if len(self.results) > 1 else None

    @property
    def wall_seconds(self) -> float:
        return fmean(result.wall_seconds for result in self.results)

    @property
    def missed(self) -> float:
        """The largest share of the seconds, over the seeds, by which a run was longer or shorter."""
        return max((result.wall_seconds / result.seconds - 1 for result in self.results), key=abs)

    @property
    def is_trained(self) -> bool:
        """Whether every seed had time for training."""
        return all(result.steps for result in self.results)

    @property
    def curve(self) -> list[Point]:
        """The means over the seeds that have a student at a moment, moment by moment."""
        moments: dict[int, list[tuple[float, float]]] = {}
        for result in self.results:
            for seconds, top1 in result.curve[:-1]:
                moments.setdefault(int(MOMENTS * seconds / result.seconds), []).append((seconds, top1))
        of_ends = [result.curve[-1] for result in self.results]
        return [_mean(moments[moment]) for moment in sorted(moments)] + [_mean(of_ends)]


def _mean(points: Sequence[tuple[float, float]]) -> Point:
    seconds, top1 = zip(*points, strict=True)
    return Point(seconds=fmean(seconds), top1=fmean(top1))


def summaries(results: Sequence[Result]) -> list[Summary]:
    """Return a summary of each arm, in the order in which the arms first appear."""
    order = list(dict.fromkeys(result.arm for result in results))
    by_arm = groupby(sorted(results, key=lambda each: order.index(each.arm)), key=lambda each: each.arm)
    return [Summary(results=list(group)) for _, group in by_arm]


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table with a line per arm."""
    lines = [
        "| arm | top-1 | agrees with the teacher | wall s | images | training steps | seeds | dtype |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for summary in summaries(results):
        spread = "" if summary.spread is None else f" ± {100 * summary.spread:.2f}"
        untrained = "" if summary.is_trained else " (too little time)"
        missed = f" (missed by {summary.missed:+.0%})" if abs(summary.missed) > TOLERANCE else ""
        each = summary.results
        cells = [
            summary.arm,
            f"{100 * summary.top1:.2f}{spread} %",
            f"{fmean(result.agreement for result in each):.2%}",
            f"{summary.wall_seconds:.0f}{missed}",
            f"{fmean(result.images for result in each):.0f}",
            f"{fmean(result.steps for result in each):.0f}{untrained}",
            ", ".join(str(result.seed) for result in each),
            each[0].precision,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    first = results[0]
    lines.append(
        f"\nTeacher {first.teacher_top1:.2%}; {first.seconds:g} s for each arm and seed; the student at the"
        " end, not the best one; mean ± standard deviation."
    )
    return "\n".join(lines)


def curves(results: Sequence[Result]) -> str:
    """Return a line per arm with seconds and top-1 in percent at each moment."""
    lines = ["top-1 in % by seconds, measured after the end:"]
    for summary in summaries(results):
        points = (f"{point.seconds:.0f} s {100 * point.top1:.1f}" for point in summary.curve)
        lines.append(f"{summary.arm:>12}: " + ", ".join(points))
    return "\n".join(lines)


def save_picture(results: Sequence[Result], path: Path) -> None:
    """Draw the mean of each arm as a line, and each seed's final student as a point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for summary in summaries(results):
        points = summary.curve
        seconds, top1 = [point.seconds for point in points], [100 * point.top1 for point in points]
        (line,) = axes.plot(seconds, top1, label=summary.arm)
        ends = [result.curve[-1] for result in summary.results]
        axes.scatter([at for at, _ in ends], [100 * end for _, end in ends], s=12, color=line.get_color())
    axes.set(xlabel="seconds", ylabel="top-1 of the student on the test set, %")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def rows(results: Sequence[Result]) -> list[Row]:
    """Return each arm's mean top-1 against the baseline's, or the first arm's if there is no baseline.

    An arm that had no time for a training step has no row, and is no baseline.
    """
    found = [summary for summary in summaries(results) if summary.is_trained]
    if not found:
        return []
    baseline = next((each for each in found if each.arm == BASELINE), found[0])
    return [
        Row(
            case=f"e2e/{summary.arm}",
            baseline=baseline.arm,
            ours=summary.top1,
            theirs=baseline.top1,
            unit="top-1",
            ratio=summary.top1 / baseline.top1,
            floor=None,
            device=summary.results[0].device,
            dtype=summary.results[0].precision,
            shape=f"{summary.wall_seconds:.0f} s, {len(summary.results)} seeds",
            commit=summary.results[0].commit,
        )
        for summary in found
    ]
