"""Recognize the format of a test set by its contents, and open it."""

import glob
import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from engine.config.evaluate import FASHION_MNIST
from engine.datasets.source import Encoded, LabeledSource, image_suffixes
from engine.errors import UserError
from engine.paths import PROJECT_ROOT, resolve

ACCEPTED = (
    "a folder of class folders with images, WebDataset tars, parquet files with image and label, a folder of "
    f"datasets.save_to_disk, torchvision:NAME, or {FASHION_MNIST}"
)
KEY = "evaluate.data"
PARQUET = b"PAR1"
SPLITS = ("test", "testing", "val", "valid", "validation", "train", "training")
"""Names of splits; a message proposes the first one that is there."""


def open_path(data: str) -> LabeledSource:
    """Open the set at a path, or at all files that a pattern with `*` or `{000..012}` matches.

    Raises UserError if nothing is there, if the format is none of ACCEPTED, and for faults in the files.
    """
    paths = _matching(data)
    source = _open_folder(paths[0]) if paths[0].is_dir() and len(paths) == 1 else _open_files(paths, data)
    if not len(source.labels):
        raise UserError(f"{KEY}: {data} holds no images; give one of: {ACCEPTED}")
    return source


def _matching(data: str) -> list[Path]:
    """Return the path, or the files that the pattern matches, each only once."""
    if not re.search(r"[*?\[{]", data) or Path(data).expanduser().exists():
        return [resolve(data, KEY)]
    found: list[Path] = []
    for pattern in _without_braces(data):
        given = str(Path(pattern).expanduser())
        for root in (Path.cwd(), PROJECT_ROOT):
            matches = sorted(glob.glob(given, root_dir=root))  # noqa: PTH207 - Path.glob takes no absolute pattern
            if matches:
                break
        else:
            raise UserError(f"{KEY}: no file matches '{pattern}'; give the path of existing files")
        found += [root / match for match in matches]
    return list(dict.fromkeys(found))


def _without_braces(pattern: str) -> Iterator[str]:
    """Yield the pattern with each alternative of its braces, as a shell does: {a,b} and {000..012}."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_alternatives(part) if number % 2 else [part] for number, part in enumerate(parts)]
    yield from map("".join, product(*choices))


def _alternatives(text: str) -> list[str]:
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        first, last = numbers.groups()
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return text.split(",")


def _open_files(paths: Sequence[Path], data: str) -> LabeledSource:
    kinds = {_kind(path) for path in paths}
    if kinds == {"tar"}:
        from engine.datasets.web_dataset import open_tars

        return open_tars(paths)
    if kinds == {"parquet"}:
        from engine.datasets.tables import open_parquet

        return open_parquet(paths)
    raise _unknown(data)


def _kind(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(len(PARQUET))
    return "parquet" if start == PARQUET else "tar" if tarfile.is_tarfile(path) else None


def _open_folder(folder: Path) -> LabeledSource:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        from engine.datasets.tables import open_saved

        return open_saved(folder)
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    tars = [path for path in visible if re.search(r"\.(tar|tar\.\w+|tgz)$", path.name)]
    if tars:
        _require_one_split(tars, folder)
        return _open_files(tars, str(folder))
    parquet = [path for path in visible if path.suffix == ".parquet"] or sorted(folder.rglob("*.parquet"))
    if parquet:
        _require_one_split(parquet, folder)
        return _open_files(parquet, str(folder))
    if any(path.is_dir() for path in visible):
        return _open_class_folders(folder)
    raise _unknown(str(folder))


def _require_one_split(paths: Sequence[Path], folder: Path) -> None:
    """Raise UserError if the files in `folder` are of several splits, as their names or folders say."""
    files = {splits: path for path in reversed(paths) if (splits := _splits(path, folder))}
    if len(files) > 1:
        found = sorted(files, key=lambda splits: [SPLITS.index(split) for split in splits])
        listed = ", ".join(map(" and ".join, found))
        raise UserError(
            f"{KEY}: {folder} has files of several splits ({listed}); give a pattern, such as "
            f"{_pattern(files[found[0]])}"
        )


def _splits(path: Path, folder: Path) -> tuple[str, ...]:
    """Return the splits that occur as words in the path below `folder`."""
    words = re.findall("[a-z]+", str(path.relative_to(folder)).lower())
    return tuple(split for split in SPLITS if split in words)


def _pattern(path: Path) -> Path:
    """Return a pattern for the files of the same split next to `path`."""
    named = re.match(rf"(?i).*(?<![a-z])({'|'.join(SPLITS)})(?![a-z])[-_]*", path.name)
    return path.with_name(f"{named[0] if named else ''}*{path.suffix}")


def _open_class_folders(folder: Path) -> LabeledSource:
    """Open a folder with a folder of images for each class, as torchvision's ImageFolder does."""
    from torchvision.datasets.folder import find_classes, make_dataset

    names = [name for name in find_classes(str(folder))[0] if not name.startswith(".")]
    index = {name: number for number, name in enumerate(names)}
    found = make_dataset(str(folder), index, is_valid_file=_is_image, allow_empty=True)
    filled = list(dict.fromkeys(names[label] for _, label in found))
    if filled and {name.lower() for name in filled} <= set(SPLITS):
        raise UserError(
            f"{KEY}: the folders in {folder} are splits, not classes; give one of them: "
            + ", ".join(str(folder / name) for name in filled)
        )
    return LabeledSource(
        format="class folders",
        labels=np.array([label for _, label in found], np.int64),
        class_names=tuple(names),
        read=lambda: (Encoded(path, Path(path)) for path, _ in found),
    )


def _is_image(path: str) -> bool:
    name = Path(path)
    return name.suffix.lower() in image_suffixes() and not name.name.startswith(".")


def _unknown(data: str) -> UserError:
    return UserError(f"{KEY}: {data} is no test set that can be read; give {ACCEPTED}")
