"""parity.json: of each network and target, the proof of the last export to the folder."""

import json
import logging
from pathlib import Path
from typing import Any

from engine.exporting.stamp import Exported
from engine.files import replacing

logger = logging.getLogger(__name__)


def record(path: Path, exported: Exported) -> None:
    """Add the proofs to the report of earlier exports; replace a damaged report, with a warning."""
    report = _read(path)
    for network, proof in exported.proofs.items():
        report.setdefault(network, {})[exported.target] = proof
    with replacing(path) as part:
        part.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        report = None
    if isinstance(report, dict) and all(isinstance(targets, dict) for targets in report.values()):
        return report
    logger.warning(
        f"{path} was damaged and is replaced; run the other exports to this folder again for their proofs"
    )
    return {}
