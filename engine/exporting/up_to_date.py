"""What an export was made from and what it proved, so that a second call need not load the networks."""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.atomic import replacing
from engine.errors import UserError
from engine.models.factory import is_factory
from engine.models.weight_index import weight_files
from engine.paths import PROJECT_ROOT, resolve
from engine.recipe import Recipe
from engine.stages.filter_config import LOCAL_DIR
from engine.training.run_record import sha256_of

CLASSIFIERS = ("teacher", "student")
"""Networks that are handed over in files of their own."""
CODE = ("export", "engine/exporting", "engine/models", "engine/runtime")
PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "timm", "onnx", "onnx_ir")
RUNTIMES = ("onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export made: for which runtime and precision, and the proof of each network as JSON."""

    target: str
    proofs: dict[str, dict[str, Any]]
    handed_over: dict[str, str]
    """Folder of each classifier's model and JSON, in that of the export."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """`settings`: everything but files; `files`: those read, None where only a load could tell."""

    settings: dict[str, Any]
    files: list[Path] | None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        networks: list[str],
        student: str | None,
        images: str | None,
        run: str | None = None,
    ) -> "Stamp":
        """`run`: the folder that the recipe is from.

        Raises UserError for a file that the recipe names and that does not exist.
        """
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
    def name(self) -> str:
        """Of its file: other settings have another one."""
        return f".stamp-{hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]}"

    def found(self, folder: Path) -> Exported | None:
        """The export in `folder`, where it is of these settings and files and complete."""
        try:
            noted = json.loads((folder / self.name).read_text(encoding="utf-8"))
            same = set(noted["files"]) == set(map(str, self.files or ())) and all(
                _unchanged(Path(path), note) for path, note in noted["files"].items()
            )
            proofs = {name: noted["proofs"][name] for name in self.settings["networks"]}
            whole = all((folder / entry).is_dir() for proof in proofs.values() for entry in proof["entries"])
            handed_over = {name: str(noted["handed_over"][name]) for name in proofs if name in CLASSIFIERS}
            given = noted["given"]
            whole = whole and all(sha256_of(folder / path) == sha256 for path, sha256 in given.items())
            exported = Exported(target=str(noted["target"]), proofs=proofs, handed_over=handed_over)
            return exported if same and whole else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def put_on(self, folder: Path, exported: Exported) -> None:
        """After a whole export."""
        if self.files is None:
            return
        files = {str(path): {"stat": _stat(path), "sha256": sha256_of(path)} for path in self.files}
        handed_over = [folder / given for given in exported.handed_over.values()]
        paths = [path for given in handed_over for path in sorted(given.iterdir())]
        given = {str(path.relative_to(folder)): sha256_of(path) for path in paths}
        with replacing(folder / self.name) as part:
            noted = {"files": files, "given": given, **asdict(exported)}
            part.write_text(json.dumps(noted), encoding="utf-8")


def _files(recipe: Recipe, student: str | None, images: str | None) -> list[Path] | None:
    if is_factory(recipe.teacher.name) or (student and is_factory(recipe.student.name)):
        return None  # its code may have changed
    named = {"teacher.weights": recipe.teacher.weights, "--run": student, "--images": images}
    named["augment.prior"] = recipe.augment.prior
    named["filter.model"] = recipe.filter.model.removeprefix(LOCAL_DIR)
    if recipe.filter.pretrained is not None:
        return None
    files: list[Path] = []
    for field, given in named.items():
        if given:
            try:
                found = resolve(given, field)
                files += (
                    sorted(path for path in found.rglob("*") if path.is_file())
                    if found.is_dir()
                    else weight_files(found, field)
                )
            except UserError:
                return None  # a hub id, or a mistake that the loading will name
    return files


def _unchanged(path: Path, note: dict[str, Any]) -> bool:
    return _stat(path) == note["stat"] or sha256_of(path) == note["sha256"]


def _stat(path: Path) -> list[int]:
    """Changes with every write; the time of the inode's change cannot be set back."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _code_hash() -> str:
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((PROJECT_ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
