"""parity.json: of each network and target, the proof of the last export to the folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.atomic import replacing
from engine.exporting.up_to_date import Exported


def record(path: Path, exported: Exported, say: Callable[[str], None]) -> None:
    """Into the report of earlier exports; a damaged one is begun anew, which `say` is told."""
    report = _read(path, say)
    for network, proof in exported.proofs.items():
        report.setdefault(network, {})[exported.target] = proof
    with replacing(path) as part:
        part.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read(path: Path, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        report = None
    if isinstance(report, dict) and all(isinstance(targets, dict) for targets in report.values()):
        return report
    say(f"{path} was damaged and is begun anew; run the other exports to this folder again for their proofs")
    return {}
