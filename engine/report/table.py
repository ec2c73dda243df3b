"""The last lines of a run on the terminal."""

from pathlib import Path

from rich.table import Table

from engine.progress import clock
from engine.report.summary import Summary


def results_table(summary: Summary, folder: Path) -> Table:
    """Two columns, what and how much; what the run could not measure is a dash with the reason."""
    table = Table(title=f"{summary.recipe}, seed {summary.seed}", show_header=False, title_justify="left")
    rows = {
        "test accuracy": summary.accuracy_reason
        or f"teacher {_percent(summary.teacher_top1)}, student {_percent(summary.student_top1)}",
        "agreement": _percent(summary.agreement),
        "images": _images(summary),
        "label agreement": ", ".join(
            f"{gate.replace('_', ' ')} {_percent(share)}"
            for gate, share in (
                ("sources", summary.label_agreement["sources"]),
                ("before", summary.label_agreement["before"]),
                ("after_clip", summary.label_agreement["after_clip"]),
                ("after", summary.label_agreement["after"]),
            )
            if share is not None
        ),
        "seconds": ", ".join(f"{stage} {spent:.1f}" for stage, spent in summary.seconds_by_stage.items()),
        "whole run": f"{clock(summary.wall_seconds)} on {summary.device} in {summary.precision},"
        f" runtime {summary.runtime}, {summary.images_per_second:.1f} images/s",
        "files": str(folder),
    }
    if summary.warning:
        rows["warning"] = summary.warning
    for what, value in rows.items():
        table.add_row(what, value)
    return table


def _images(summary: Summary) -> str:
    if not summary.images_augmented:
        return f"{summary.images_synthesized} synthesized, no variations"
    return (
        f"{summary.images_synthesized} synthesized, {summary.images_augmented} augmented,"
        f" {summary.images_accepted} accepted ({_percent(summary.acceptance_rate)})"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
