"""Record what an export was made from, so that a repeated command need not load the networks."""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.atomic import replacing
from engine.config.filter import LOCAL_DIR
from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.models.factory import is_factory
from engine.models.weight_index import weight_files
from engine.paths import PROJECT_ROOT, resolve
from export.hashed import sha256_of

CLASSIFIERS = ("teacher", "student")
"""Networks that are handed over in files of their own."""
CODE = ("export", "engine/exporting", "engine/models", "engine/networks.py", "engine/runtime")
"""Folders and files whose code an export depends on."""
PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "timm", "onnx", "onnx_ir")
RUNTIMES = ("onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The results of one export."""

    target: str
    """Runtime and precision, such as "openvino fp32"."""
    reports: dict[str, dict[str, Any]]
    """By network, its entry in parity.json."""
    handed_over: dict[str, str]
    """By classifier, the folder of its model and JSON, relative to the folder of the export."""


@dataclass(frozen=True, kw_only=True)
class UpToDateMarker:
    """The inputs of an export. Its file in the folder of the export records them with the results."""

    settings: dict[str, Any]
    """Everything but files."""
    files: list[Path] | None
    """The files that the export reads; None if only loading the networks could tell."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        networks: list[str],
        student: str | None,
        images: str | None,
        run: str | None = None,
    ) -> "UpToDateMarker":
        """Return the marker of an export of `networks`; `run` is the folder that the recipe comes from."""
        settings = {
            "recipe": asdict(recipe),
            "run": run,
            "networks": networks,
            "machine": [platform.node(), platform.machine(), Path("/dev/nvidiactl").exists()],
            "packages": {name: _version(name) for name in (*PACKAGES, *RUNTIMES)},
            "code": _code_hash(),
        }
        return cls(settings=settings, files=_files(recipe, student, images))

    @property
    def file_name(self) -> str:
        """Name of the marker's file, derived from the settings."""
        return f".stamp-{hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]}"

    def read(self, folder: Path) -> Exported | None:
        """Return the export in `folder` if it is complete and its inputs have not changed, else None."""
        try:
            recorded = json.loads((folder / self.file_name).read_text(encoding="utf-8"))
            reports = {name: recorded["reports"][name] for name in self.settings["networks"]}
            is_current = (
                set(recorded["inputs"]) == set(map(str, self.files or ()))
                and all(_is_unchanged(Path(path), facts) for path, facts in recorded["inputs"].items())
                and all(
                    (folder / entry).is_dir() for report in reports.values() for entry in report["entries"]
                )
                and all(sha256_of(folder / path) == sha256 for path, sha256 in recorded["outputs"].items())
            )
            exported = Exported(
                target=str(recorded["target"]),
                reports=reports,
                handed_over={
                    name: str(recorded["handed_over"][name]) for name in reports if name in CLASSIFIERS
                },
            )
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return exported if is_current else None

    def write(self, folder: Path, exported: Exported) -> None:
        """Mark `folder` as up to date, once the export is complete."""
        if self.files is None:
            return
        inputs = {str(path): {"stat": _stat(path), "sha256": sha256_of(path)} for path in self.files}
        outputs = [
            path for name in exported.handed_over.values() for path in sorted((folder / name).iterdir())
        ]
        recorded = {
            "inputs": inputs,
            "outputs": {str(path.relative_to(folder)): sha256_of(path) for path in outputs},
            **asdict(exported),
        }
        with replacing(folder / self.file_name) as part:
            part.write_text(json.dumps(recorded), encoding="utf-8")


def _files(recipe: Recipe, student: str | None, images: str | None) -> list[Path] | None:
    if is_factory(recipe.teacher.name) or (student and is_factory(recipe.student.name)):
        return None  # its code may have changed
    if recipe.filter.pretrained is not None:
        return None
    named = {
        "teacher.weights": recipe.teacher.weights,
        "--run": student,
        "--images": images,
        "augment.prior": recipe.augment.prior,
        "filter.model": recipe.filter.model.removeprefix(LOCAL_DIR),
    }
    files: list[Path] = []
    for setting, given in named.items():
        if given:
            try:
                path = resolve(given, setting)
                files += (
                    sorted(file for file in path.rglob("*") if file.is_file())
                    if path.is_dir()
                    else weight_files(path, setting)
                )
            except UserError:
                return None  # a hub id, or a mistake that loading the networks will report
    return files


def _is_unchanged(path: Path, facts: dict[str, Any]) -> bool:
    return _stat(path) == facts["stat"] or sha256_of(path) == facts["sha256"]


def _stat(path: Path) -> list[int]:
    """Return values that change with every write; ctime cannot be set back."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _code_hash() -> str:
    digest = hashlib.sha256()
    for name in CODE:
        root = PROJECT_ROOT / name
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
