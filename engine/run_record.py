"""provenance.json: the files that a run was made with, by hash, next to its config.yaml."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.files import replacing
from engine.models.factory import Factory, factories, read_factories
from engine.recipe import Recipe

FILE_NAME = "provenance.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run folder remembers; runs of earlier versions remember nothing."""

    weights: dict[str, Any] = field(default_factory=dict)
    """By part, as `engine.provenance.weights_of` gives them."""
    factories: dict[str, Factory] = field(default_factory=dict)
    """By section, those that the command line named."""
    banks: dict[str, str] = field(default_factory=dict)
    """The banks of a distillation: as given, and where that is."""
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
            banks={url: _absolute(url) for url in banks},
            shares=None if shares is None else list(shares),
        )

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """The record in `folder`, empty if there is none. Raises UserError that names a damaged file."""
        path = folder / FILE_NAME
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**fields, "factories": read_factories(fields["factories"])})
        except FileNotFoundError:
            return cls()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); restore it, or delete it: then no hash is compared"
            ) from None

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        with replacing(folder / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def write_student(self, folder: Path, file: Path) -> None:
        """The record with the hash of the student's file."""
        replace(self, student_sha256=sha256_of(file)).write(folder)


def sha256_of(file: Path) -> str:
    """As sha256sum prints it."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).expanduser().resolve())
