"""One measured figure beside its baseline, as `--json` writes it."""

import csv
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch

from engine.atomic import replacing

PROC_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class Row:
    """`ratio` is how many times better than the baseline; `floor` the physical bound in the same unit."""

    case: str
    baseline: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    floor: float | None
    device: str
    dtype: str
    shape: str
    commit: str


def commit() -> str:
    """Return $COMMIT, for a copy without history; else the checkout's short hash, or `unknown`."""
    if given := os.environ.get("COMMIT"):
        return given
    return _output(["git", "rev-parse", "--short", "HEAD"]) or "unknown"


def _output(command: list[str]) -> str:
    """Return what a program prints; an empty string if it fails or is not installed."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            cwd=folder,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def table(rows: list[Row], *, header: bool = True) -> str:
    """Markdown, one line a row."""
    lines = []
    if header:
        lines += [
            "| case | shape | dtype | baseline | theirs | ours | times better | floor | ours / floor |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
    for row in rows:
        floor, share = (
            ("-", "-") if row.floor is None else (f"{row.floor:.3g}", f"{row.ours / row.floor:.2f}")
        )
        cells = [
            row.case,
            row.shape,
            row.dtype,
            row.baseline,
            f"{row.theirs:.4g} {row.unit}",
            f"{row.ours:.4g}",
        ]
        lines.append("| " + " | ".join([*cells, f"{row.ratio:.2f}", floor, share]) + " |")
    return "\n".join(lines)


def write_rows(path: Path, rows: list[Row]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: list[Row]) -> None:
    """One line a row, with the versions that made it."""
    versions = _versions()
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*Row.__dataclass_fields__, *versions])
        writer.writeheader()
        writer.writerows(asdict(row) | versions for row in rows)


def _versions() -> dict[str, str]:
    """Of what runs the kernels; `absent` where a machine has none of it."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {
        "torch": _version("torch"),
        "triton": _version("triton"),
        "python": platform.python_version(),
        "cuda": torch.version.cuda or "absent",
        "cudnn": str(cudnn or "absent"),
        "driver": _driver(),
    }


def _driver() -> str:
    """Return the version of the NVIDIA kernel module, from nvidia-smi if /proc does not show it."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    text = PROC_DRIVER.read_text(encoding="utf-8") if PROC_DRIVER.exists() else _output(ask)
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "absent"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"
