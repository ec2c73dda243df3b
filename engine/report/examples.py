"""The few sources and variations of a run that its picture shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.batch import ImageBatch
from engine.report.grid import save_grid
from engine.stages.filter import FilterResult

ROWS, COLUMNS = 20, 10


class Examples:
    """Collects the first source of each class, up to ROWS sources, with up to COLUMNS variations each."""

    def __init__(self) -> None:
        self._rows: list[dict[str, torch.Tensor]] = []

    def add(self, sources: ImageBatch, variations: ImageBatch, result: FilterResult) -> None:
        """Takes from this batch a first source of each class until there are ROWS rows."""
        classes = sorted(set(sources.labels.tolist()))
        for label in classes:
            if len(self._rows) >= ROWS:
                return
            source = int((sources.labels == label).nonzero()[0])
            mine = (variations.parents == sources.keys[source]).nonzero()[:COLUMNS, 0]
            self._rows.append(
                {
                    "source": sources.images[source].clone(),
                    "label": sources.labels[source].clone(),
                    "variations": variations.images[mine],
                    "similarity": result.similarity[mine],
                    "kept": result.kept[mine],
                }
            )

    def save(self, path: Path, class_names: Sequence[str]) -> None:
        """Writes the picture; nothing where nothing was augmented."""
        if not self._rows:
            return
        columns = {name: torch.stack([row[name] for row in self._rows]) for name in self._rows[0]}
        save_grid(
            path,
            columns["source"],
            columns["variations"],
            columns["similarity"],
            columns["kept"],
            columns["label"],
            class_names,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows = state["rows"]
