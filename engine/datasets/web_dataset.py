"""Open WebDataset shards: tar files in which members with the same stem are one sample.

A sample is an image next to KEY.cls (a number or a name) or KEY.json with `label` (a number or a name) and
perhaps `class_name`. Other members are not read, pickles in particular.
"""

import json
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.datasets.source import Encoded, LabeledSource, image_suffixes, index_labels
from engine.errors import UserError

FORMAT = "WebDataset"
CLASS, JSON = "cls", "json"


def open_tars(paths: Sequence[Path]) -> LabeledSource:
    """Open the shards and read all labels. Raises UserError that names the file and sample of a fault."""
    raw: list[int | str] = []
    names: dict[int, str] = {}
    for path in paths:
        for key, members in _samples(path, (CLASS, JSON)):
            label, name = _label(members, f"{path}: {key}")
            raw.append(label)
            if isinstance(label, int) and name is not None and names.setdefault(label, name) != name:
                raise UserError(f"{path}: {key} calls class {label} '{name}', others '{names[label]}'")
    labels, class_names = index_labels(raw, str(paths[0].parent))
    has_own_order = class_names is None
    if class_names is None and names:
        labels, class_names = _named(labels, names, str(paths[0].parent))
    return LabeledSource(
        format=FORMAT,
        labels=labels,
        class_names=class_names,
        read=lambda: _images(paths),
        has_own_order=has_own_order,
    )


def _named(
    labels: NDArray[np.int64], names: Mapping[int, str], where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels that index the names. Raises UserError if a label has no name."""
    known = sorted(names)
    unnamed = sorted(set(labels.tolist()) - names.keys())
    if unnamed:
        raise UserError(f"{where}: class {unnamed[0]} has no class_name, but class {known[0]} has")
    return np.searchsorted(known, labels).astype(np.int64), tuple(names[label] for label in known)


def _images(paths: Sequence[Path]) -> Iterator[Encoded]:
    wanted = {suffix.removeprefix(".") for suffix in image_suffixes()} | {"npy"}
    for path in paths:
        for key, members in _samples(path, wanted):
            extension = _image_extension(members, f"{path}: {key}")
            yield Encoded(f"{path}: {key}.{extension}", members[extension])


def _samples(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and members by extension of each sample with an image.

    Only members whose extension ends with one of `wanted` are read; the others are empty.
    """
    key, members = "", dict[str, bytes]()
    with _errors_named(path), tarfile.open(path) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or they fill the memory
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if not (member.isfile() and stem and extension):
                continue
            extension = extension.lower()
            if folder + slash + stem != key:
                if _image_extensions(members):
                    yield key, members
                key, members = folder + slash + stem, {}
            file = tar.extractfile(member) if _last(extension) in wanted else None
            members[extension] = file.read() if file else b""
        if _image_extensions(members):
            yield key, members


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path} cannot be read as a tar file ({error}); restore it") from error


def _last(extension: str) -> str:
    return extension.rpartition(".")[2]


def _image_extensions(members: Mapping[str, bytes]) -> list[str]:
    return [name for name in members if _last(name) == "npy" or f".{_last(name)}" in image_suffixes()]


def _image_extension(members: Mapping[str, bytes], where: str) -> str:
    """Return the extension of the image; of several, the one without a second dot."""
    found = _image_extensions(members)
    plain = [name for name in found if "." not in name] or found
    if len(plain) > 1:
        raise UserError(f"{where} has several images ({', '.join(plain)}); leave one for each label")
    return plain[0]


def _label(members: Mapping[str, bytes], where: str) -> tuple[int | str, str | None]:
    """Return the label of a sample and the name of its class, if the label is a number and has one."""
    _image_extension(members, where)
    if CLASS in members:
        text = members[CLASS].decode("utf-8", "replace").strip()
        if text:
            return (int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else text), None
    elif JSON in members:
        try:
            fields = json.loads(members[JSON])
        except ValueError as error:
            raise UserError(f"{where}.json is not JSON ({error}); restore it") from error
        fields = fields if isinstance(fields, dict) else {}
        label, name = fields.get("label"), fields.get("class_name")
        if isinstance(label, int | str) and not isinstance(label, bool):
            return label, name if isinstance(name, str) else None
    raise UserError(f"{where} has no label; a sample needs KEY.cls, or KEY.json with `label`")
