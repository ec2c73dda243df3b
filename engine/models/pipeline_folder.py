"""Where a diffusers pipeline lies and which one it is; no torch, so that an up-to-date export stays quick."""

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
    """A pipeline's folder (or hub id, `owner/name` or `owner/name@revision`) as diffusers writes them."""

    source: str
    """What `from_pretrained` shall be given, beside `options`."""
    options: dict[str, Any]
    where: str
    """`source` for the user."""
    section: str
    """The key of the recipe that names it."""
    index: dict[str, Any]
    """Its model_index.json."""

    @classmethod
    def open(cls, folder: str, section: str = "augment.prior") -> "PipelineFolder":
        """Reads the index alone. Raises UserError, naming `section` and the file, where it cannot."""
        source, where, options = _locate(folder, section)
        with reading(section, f"{where}/{INDEX}"):
            index = json.loads(_index_file(source, options).read_text(encoding="utf-8"))
            index["_class_name"]
        return cls(source=source, options=options, where=where, section=section, index=index)

    @property
    def class_name(self) -> str:
        """Of the pipeline."""
        return str(self.index["_class_name"])

    def reading(self, part: str) -> AbstractContextManager[None]:
        """A context in which whatever cannot be read of `part` is a UserError that names the file."""
        return reading(self.section, f"{self.where}/{part}")

    def fault(self, file: str, what: str) -> UserError:
        """The error for a stored setting: the key, its value and what to change."""
        return UserError(f"{self.section}: {self.where}/{file}: {what}")


@contextmanager
def reading(section: str, what: str) -> Iterator[None]:
    """Turns whatever the libraries raise while reading `what` into one line for the user."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{section}: cannot read {what}: {reason}") from error


def _locate(folder: str, section: str) -> tuple[str, str, dict[str, Any]]:
    """What `from_pretrained` shall be given, its name for the user, and options: a folder, else a hub id."""
    try:
        found = str(resolve(folder, section))
    except UserError:
        if not _HUB_ID.fullmatch(folder):
            raise
        name, _, revision = folder.partition("@")
        return name, f"{folder} (no folder here, so a hub id)", {"revision": revision} if revision else {}
    return found, found, {"local_files_only": True}


def _index_file(source: str, options: dict[str, Any]) -> Path:
    if "local_files_only" in options:
        return Path(source, INDEX)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, INDEX, **options))
