"""What a bank's images come from: the settings that decide them, the weights and their licences."""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from engine.bank.manifest import Header
from engine.errors import UserError
from engine.models.weight_index import weight_files
from engine.paths import resolve
from engine.recipe import Recipe
from engine.stages.filter_config import LOCAL_DIR

DECIDING = ("seed", "class_names", "teacher", "synthesize", "augment", "filter", "storage")
DECIDING_COMPUTE = (
    "device",
    "precision",
    "runtime",
    "runtime_precision",
    "onnx_provider",
    "threads",
    "overlap",
    "kernels",
    "compile",
)
NOT_STATED = "not stated in its files"


def bank_header(recipe: Recipe) -> Header:
    """The header of a bank made by a resolved recipe. Raises UserError for weights that cannot be found."""
    fields = json.loads(json.dumps(asdict(recipe)))
    found = weights_of(recipe)
    deciding: dict[str, Any] = {name: fields[name] for name in DECIDING}
    deciding["compute"] = {name: fields["compute"][name] for name in DECIDING_COMPUTE}
    deciding["weights"] = {part: fact["sha256"] for part, fact in found.items()}
    return Header(
        recipe=fields,
        settings_sha256=hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest(),
        class_names=recipe.class_names,
        image_size=(recipe.teacher.image_size, recipe.teacher.image_size),
        codec=recipe.storage.codec,
        quality=recipe.storage.quality,
        facts=found,
    )


def weights_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """name, sha256 (None where the weights are no local files) and licence of each network that has a say."""
    weights = recipe.teacher.weights
    teacher = resolve(weights, "teacher.weights") if weights else None
    found = {"teacher": _fact(recipe.teacher.name, teacher)}
    if recipe.augment.method == "variation":
        prior = recipe.augment.prior
        found["diffusion prior"] = _fact(prior, _local_folder(prior))
    if recipe.filter.model:
        folder = recipe.filter.model.removeprefix(LOCAL_DIR)
        local = _local_folder(folder) if recipe.filter.model.startswith(LOCAL_DIR) else None
        found["CLIP"] = _fact(" ".join(filter(None, (folder, recipe.filter.pretrained))), local)
    return found


def _local_folder(name: str) -> Path | None:
    """None for a name on a hub."""
    try:
        return resolve(name, "")
    except UserError:
        return None


def _fact(name: str, path: Path | None) -> dict[str, Any]:
    if path is None:
        return {"name": name, "sha256": None, "licence": f"see the card of {name}"}
    return {"name": name, "sha256": _sha256(path), "licence": _licence(path)}


def _sha256(path: Path) -> str:
    """Of a file and those it names, or of all files of a folder; with their names."""
    files = sorted(path.rglob("*")) if path.is_dir() else weight_files(path, "teacher.weights")
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
            digest.update(f"{file.relative_to(path.parent)} {content}\n".encode())
    return digest.hexdigest()


def _licence(path: Path) -> str:
    """As a model card beside or above the weights states it."""
    folder = path if path.is_dir() else path.parent
    for card in (folder / "README.md", folder.parent / "README.md"):
        if card.is_file() and (stated := _stated(card.read_text(errors="replace"))):
            return stated
    return NOT_STATED


def _stated(card: str) -> str | None:
    """`license:` of the front matter."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    try:
        fields = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return None
    stated = fields.get("license") if isinstance(fields, dict) else None
    return str(stated) if stated else None
