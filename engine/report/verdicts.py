"""One row for every variation of a run, kept or not."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.batch import ImageBatch
from engine.files import replacing
from engine.stages.filter import Verdict

Columns = dict[str, Tensor]


class Verdicts:
    """Columns [V]: keys, parents, labels, seeds, teacher_top1 int64; similarity, confidence float32; kept."""

    def __init__(self, parts: list[Columns] | None = None) -> None:
        self._parts = [part for part in parts or [] if part]

    def add(self, variations: ImageBatch, verdict: Verdict) -> None:
        rows = {name: getattr(variations, name) for name in ("keys", "parents", "labels", "seeds")}
        found = {
            name: getattr(verdict, name) for name in ("teacher_top1", "similarity", "confidence", "kept")
        }
        self._parts.append({**rows, **found})

    def columns(self) -> Columns:
        """Every row so far; no columns where nothing was augmented."""
        if not self._parts:
            return {}
        self._parts = [{name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}]
        return self._parts[0]

    def save(self, path: Path) -> None:
        """Writes a safetensors file of the columns; nothing where nothing was augmented."""
        if columns := self.columns():
            with replacing(path) as temporary:
                save_file(columns, temporary)
