"""The teacher's outputs on stored views of a shard's images: one file for each shard, next to the others.

The file is not in the manifest, because it can be made later, and made again, by anyone who may write to
the bank. It names the tar and the teacher that it belongs to, and contains a hash of itself. Renaming it into
place commits it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from engine.bank.manifest import views_file
from engine.bank.storage import Storage
from engine.config.views import StoredViews
from engine.errors import UserError

_KEY = "views"
"""The only entry of the file's metadata: safetensors writes several in a random order."""
_LENGTH = 8
"""Bytes of the header's length, which begins a safetensors file."""

Half = npt.NDArray[np.float16]


class ViewsError(Exception):
    """A file of views is damaged, or does not fit; the message says how, without naming the file."""


class TeacherOutputs(NamedTuple):
    """The teacher's outputs on K views of each of the N kept images of a shard."""

    logits: Half
    """[N, K, C]."""
    pooled: Half | None
    """[N, K, D], the feature map, averaged over its positions."""


@dataclass(frozen=True, kw_only=True)
class ViewsOwner:
    """What stored outputs belong to."""

    tar: str
    """SHA-256 of the shard's tar."""
    teacher: str
    """Hash of the teacher: its weights, inputs and outputs."""
    views: StoredViews


def pack(owner: ViewsOwner, outputs: TeacherOutputs) -> bytes:
    """Return the contents of a file of views: a function of its arguments."""
    tensors = {name: value for name, value in outputs._asdict().items() if value is not None}
    facts = asdict(owner)
    return save(tensors, {_KEY: json.dumps(facts | {"sha256": _digest(facts, tensors)})})


class ViewsFile(NamedTuple):
    """A file of views that is open."""

    owner: ViewsOwner
    outputs: TeacherOutputs


def read(path: Path) -> ViewsFile:
    """Open a local file of views and check its hash. Its arrays are mapped, so they take no memory.

    Raises:
        ViewsError: if the file is damaged.
        FileNotFoundError: if there is none.
    """
    if path.stat().st_size == 0:
        raise ViewsError("is empty")
    return parse(np.memmap(path, np.uint8, mode="r"))


def parse(data: npt.NDArray[np.uint8]) -> ViewsFile:
    """Return the contents of a file of views, as arrays over `data`. Raises ViewsError if it is damaged."""
    try:
        begin = _LENGTH + int.from_bytes(data[:_LENGTH].tobytes(), "little")
        header = json.loads(data[_LENGTH:begin].tobytes())
        facts = json.loads(header.pop("__metadata__")[_KEY])
        sha256 = facts.pop("sha256")
        owner = ViewsOwner(**facts | {"views": StoredViews(**facts["views"])})
        arrays = {name: _array(data[begin:], fields) for name, fields in header.items()}
        outputs = TeacherOutputs(arrays["logits"], arrays.get("pooled"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ViewsError(f"is damaged ({error})") from None
    if sha256 != _digest(facts, arrays):
        raise ViewsError("was altered (its SHA-256 differs)")
    return ViewsFile(owner, outputs)


def write_views(storage: Storage, number: int, data: bytes) -> None:
    """Write the file of a shard's views. Raises UserError if that is impossible."""
    name = views_file(number)
    try:
        try:
            storage.write(name, data)
        except FileNotFoundError:  # a generation that resumed took the temporary file for a killed writer's
            storage.write(name, data)
    except OSError as error:
        raise UserError(
            f"{storage.url}: the teacher's outputs cannot be stored there: {error}; allow this user to write"
            " to the bank, copy it, or set --distill.views 0"
        ) from None


def _array(data: npt.NDArray[np.uint8], fields: Mapping[str, Any]) -> Half:
    if fields["dtype"] != "F16":
        raise ValueError(f"its arrays are {fields['dtype']}")
    begin, end = fields["data_offsets"]
    return data[begin:end].view(np.float16).reshape(fields["shape"])


def _digest(facts: Mapping[str, Any], arrays: Mapping[str, Half]) -> str:
    """Return the hash of the facts as they were written, perhaps by an earlier version with fewer of them."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
    return digest.hexdigest()
