"""provenance.json: the files that a run was made with, by hash, next to its config.yaml."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.atomic import replacing
from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.models.factory import Factory, factories, read_factories
from export.hashed import sha256_of

FILE_NAME = "provenance.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run folder remembers; runs of earlier versions remember nothing."""

    weights: dict[str, Any] = field(default_factory=dict)
    """By part, as `engine.generation.provenance.weights_of` gives them."""
    factories: dict[str, Factory] = field(default_factory=dict)
    """By section, those that the command line named."""
    banks: list[str] = field(default_factory=list)
    """The banks of a distillation: absolute paths, or URLs."""
    shares: list[float] | None = None
    """Of the banks in a batch; None for their sizes."""
    student_sha256: str | None = None
    """Of the finished student's file."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        weights: Mapping[str, Any],
        *,
        banks: Sequence[str] = (),
        shares: Sequence[float] | None = None,
    ) -> "RunRecord":
        """The record of a run that begins, or goes on."""
        return cls(
            weights=dict(weights),
            factories=factories({"teacher": recipe.teacher.name, "student": recipe.student.name}),
            banks=list(banks),
            shares=None if shares is None else list(shares),
        )

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """The record in `folder`, empty if there is none. Raises UserError that names a damaged file."""
        path = folder / FILE_NAME
        try:
            return cls._of_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); restore it, or delete it: then no hash is compared"
            ) from None

    @classmethod
    def _of_json(cls, fields: Mapping[str, Any]) -> "RunRecord":
        """Raises ValueError, LookupError, TypeError or AttributeError for what `write` did not write."""
        record = cls(**{**fields, "factories": read_factories(fields["factories"])})
        hashes = [record.student_sha256, *(fact["sha256"] for fact in record.weights.values())]
        if not all(sha256 is None or isinstance(sha256, str) for sha256 in hashes):
            raise ValueError("a sha256 is not text")
        if not isinstance(record.banks, list) or not all(isinstance(url, str) for url in record.banks):
            raise ValueError("banks is not a list of paths")
        if record.shares is not None and not all(isinstance(share, float) for share in record.shares):
            raise ValueError("shares is not a list of numbers")
        return record

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        with replacing(folder / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def write_student(self, folder: Path, file: Path) -> None:
        """The record with the hash of the student's file."""
        replace(self, student_sha256=sha256_of(file)).write(folder)
