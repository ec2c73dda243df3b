"""Read and write provenance.json, which records the hashes of the files that a run uses."""

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
    """The contents of provenance.json. Folders of earlier versions have none; their record is empty."""

    weights: dict[str, Any] = field(default_factory=dict)
    """Facts about the weights by network, from `engine.generation.provenance.weights_of`."""
    factories: dict[str, Factory] = field(default_factory=dict)
    """Python factories by section, which the command line allowed to run."""
    banks: list[str] = field(default_factory=list)
    """Banks of a distillation, as absolute paths or URLs."""
    shares: list[float] | None = None
    """Share of each bank in a batch; None if shares follow the banks' sizes."""
    student_sha256: str | None = None
    """SHA-256 of the finished student's file."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        weights: Mapping[str, Any],
        *,
        banks: Sequence[str] = (),
        shares: Sequence[float] | None = None,
    ) -> "RunRecord":
        """Return the record of a run that starts or continues."""
        return cls(
            weights=dict(weights),
            factories=factories({"teacher": recipe.teacher.name, "student": recipe.student.name}),
            banks=list(banks),
            shares=None if shares is None else list(shares),
        )

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Return the record in `folder`, empty without a file. Raises UserError if the file is damaged."""
        path = folder / FILE_NAME
        try:
            return cls._of_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); restore it, or delete it to compare no hashes"
            ) from None

    @classmethod
    def _of_json(cls, fields: Mapping[str, Any]) -> "RunRecord":
        """Raise ValueError, LookupError, TypeError or AttributeError unless `write` wrote the fields."""
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
        """Write the file to `folder`, atomically."""
        with replacing(folder / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def write_student(self, folder: Path, file: Path) -> None:
        """Add the hash of the student's file to the record and write it to `folder`."""
        replace(self, student_sha256=sha256_of(file)).write(folder)
