"""Locate a diffusers pipeline and read its index. Imports no torch, to keep an up-to-date export fast."""

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.paths import resolve

IMAGE_VARIATION = "StableDiffusionImageVariationPipeline"
XL = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
TEXT_TO_IMAGE = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", *XL)
INDEX = "model_index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True, kw_only=True)
class PipelineFolder:
    """A pipeline folder as diffusers writes it, or a hub id: `owner/name` or `owner/name@revision`."""

    source: str
    """First argument of `from_pretrained`; `options` are the others."""
    options: dict[str, Any]
    where: str
    """The name of `source` in messages."""
    section: str
    """Key of the recipe that names the pipeline."""
    index: dict[str, Any]
    """Content of model_index.json."""

    @classmethod
    def open(cls, folder: str, section: str = "augment.prior") -> "PipelineFolder":
        """Read the index only. Raises a UserError that names `section` and the file if it cannot be read."""
        source, where, options = _locate(folder, section)
        with reading(section, f"{where}/{INDEX}"):
            index = json.loads(_index_file(source, options).read_text(encoding="utf-8"))
            index["_class_name"]
        return cls(source=source, options=options, where=where, section=section, index=index)

    @property
    def class_name(self) -> str:
        """Name of the pipeline's class."""
        return str(self.index["_class_name"])

    def reading(self, part: str) -> AbstractContextManager[None]:
        """Return a context that turns every failure to read `part` into a UserError that names the file."""
        return reading(self.section, f"{self.where}/{part}")

    def fault(self, file: str, what: str) -> UserError:
        """Return the error for a stored setting; `what` holds the key, its value and the remedy."""
        return UserError(f"{self.section}: {self.where}/{file}: {what}")


@contextmanager
def reading(section: str, what: str) -> Iterator[None]:
    """Turn any error that a library raises while it reads `what` into a one-line UserError."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{section}: cannot read {what}: {reason}") from error


def _locate(folder: str, section: str) -> tuple[str, str, dict[str, Any]]:
    """Return the source (a folder, else a hub id), its name in messages, and the options."""
    try:
        path = str(resolve(folder, section))
    except UserError:
        if not _HUB_ID.fullmatch(folder):
            raise
        name, _, revision = folder.partition("@")
        return (
            name,
            f"{folder} (not a local folder, so read as a hub id)",
            {"revision": revision} if revision else {},
        )
    return path, path, {"local_files_only": True}


def _index_file(source: str, options: dict[str, Any]) -> Path:
    if "local_files_only" in options:
        return Path(source, INDEX)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, INDEX, **options))
