"""What a bank's images come from: the settings that decide them, the weights and their licences."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from engine.bank.manifest import Header
from engine.bank.merge import recipes_of
from engine.config.decides import sections, settings
from engine.config.filter import LOCAL_DIR
from engine.config.recipe import Recipe
from engine.config.storage import stored_channels
from engine.errors import UserError
from engine.models.weight_index import weight_files
from engine.paths import resolve
from export.hashed import sha256_of

DECIDING = sections(Recipe, "images")
"""Fields of the recipe, most of them sections, that the settings hash of a bank covers."""
DECIDING_COMPUTE = tuple(
    key.removeprefix("compute.")
    for key, effects in settings(Recipe).items()
    if key.startswith("compute.") and "images" in effects
)
"""What it covers of the section compute."""
NOT_STATED = "not stated in its files"

TEACHER, PRIOR, CLIP = "teacher", "diffusion prior", "CLIP"
KEYS = {TEACHER: "teacher.weights", PRIOR: "augment.prior", CLIP: "filter.model"}
"""The setting that names the weights of each part."""


def bank_header(recipe: Recipe, *, of_run: bool = False) -> Header:
    """The header of a bank made by a resolved recipe. Raises UserError for weights that cannot be found.

    `of_run`: its shards depend on those before and on a student, as those of engine.run do.
    """
    fields = json.loads(json.dumps(recipe.fields))
    found = weights_of(recipe)
    deciding: dict[str, Any] = {name: fields[name] for name in DECIDING}
    deciding["compute"] = {name: fields["compute"][name] for name in DECIDING_COMPUTE}
    deciding["weights"] = {part: fact["sha256"] for part, fact in found.items()}
    for part, fact in found.items():
        if fact["sha256"]:  # which decides instead of the place
            section, _, field = KEYS[part].partition(".")
            deciding[section] = {**deciding[section], field: None}
    deciding["of_run"] = of_run
    return Header(
        recipe=fields,
        settings_sha256=hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest(),
        class_names=recipe.class_names,
        image_size=(recipe.teacher.image_size, recipe.teacher.image_size),
        channels=stored_channels(recipe.storage.codec, recipe.teacher.in_channels),
        codec=recipe.storage.codec,
        quality=recipe.storage.quality,
        facts=found,
    )


def weights_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """name, sha256 (None where the weights are no local files) and licence of each network that has a say."""
    found = {TEACHER: teacher_of(recipe)}
    if recipe.augment.method == "variation":
        found[PRIOR] = _fact(recipe.augment.prior, _place(recipe, PRIOR))
    if recipe.filter.model:
        folder = recipe.filter.model.removeprefix(LOCAL_DIR)
        name = " ".join(filter(None, (folder, recipe.filter.pretrained)))
        found[CLIP] = _fact(name, _place(recipe, CLIP))
    return found


def teacher_of(recipe: Recipe) -> dict[str, Any]:
    """The teacher's entry of `weights_of`."""
    return _fact(recipe.teacher.name, _place(recipe, TEACHER))


def require_same_weights(
    recipe: Recipe,
    facts: Mapping[str, Any],
    made_with: Sequence[Mapping[str, Any]],
    *,
    whose: str,
    fix: str,
    parts: Iterable[str] = (TEACHER,),
) -> None:
    """Refuse files of the recipe that are not those that a run or bank was made with.

    facts: by part, as `weights_of` gave them then. made_with: the recipes of that time, as mappings. A copy
    under another name is the same file, although hashes of earlier versions cover the name. What has no hash
    on either side is not compared. Raises UserError that names `whose` and the file, and ends with `fix`.
    """
    for part in parts:
        fact, path = facts.get(part), _place(recipe, part)
        known = fact.get("sha256") if isinstance(fact, Mapping) else None
        if path is None or not isinstance(known, str):
            continue
        contents = _contents(path)
        names = [path.name, path.resolve().name]
        names += [name for made in made_with if (name := _file_name(made, part))]
        found = _digest(contents)
        if known != found and known not in (_digest_with_name(contents, name) for name in names):
            raise UserError(
                f"{whose} was made with another {part}: its sha256 was {known[:12]}, that of {KEYS[part]} "
                f"{path} is {found[:12]}; {fix}"
            )


def require_teacher_of_bank(recipe: Recipe, url: str, header: Header) -> None:
    """Refuse a teacher that is not the one that made the bank, by its weights and how it is asked.

    Raises UserError that names both sides.
    """
    made_with = recipes_of(header.recipe)
    fix = "restore that file, or make a bank with this teacher"
    for facts in _by_bank(header.facts):
        require_same_weights(recipe, facts, made_with, whose=f"--bank {url}", fix=fix)
    for made in made_with:
        for field in ("in_channels", "mean", "std", "weights_key", "output"):
            then, now = _setting(made, f"teacher.{field}"), getattr(recipe.teacher, field)
            if then is not None and _values(then) != _values(now):
                raise UserError(
                    f"--bank {url} was made with teacher.{field} {_plain(then)}, this command has "
                    f"{_plain(now)}; leave out --recipe and --teacher.{field}, or make a bank with it"
                )


def require_same_facts(then: Mapping[str, Any], now: Mapping[str, Any], *, whose: str) -> None:
    """Refuse hashes in `now` that differ from those in `then`, both as `weights_of` gives them."""
    for part, fact in now.items():
        old = then.get(part)
        known = old.get("sha256") if isinstance(old, Mapping) else None
        if known and fact["sha256"] and known != fact["sha256"]:
            raise UserError(
                f"{whose} was begun with another {part}: its sha256 was {known[:12]}, that of {KEYS[part]} "
                f"is {fact['sha256'][:12]} now; restore that file, or give another --out"
            )


def _by_bank(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The facts of a bank; if it was merged, those of each of its banks."""
    if facts and all(name.startswith("bank ") for name in facts):
        return [each for part in facts.values() if isinstance(part, Mapping) for each in _by_bank(part)]
    return [facts]


def _setting(recipe: Mapping[str, Any], key: str) -> Any:
    section, _, field = key.partition(".")
    fields = recipe.get(section)
    return fields.get(field) if isinstance(fields, Mapping) else None


def _file_name(recipe: Mapping[str, Any], part: str) -> str | None:
    given = _setting(recipe, KEYS[part])
    return Path(given.removeprefix(LOCAL_DIR)).name if isinstance(given, str) else None


def _values(given: Any) -> Any:
    """One number for all channels is the same as that number for each."""
    if not isinstance(given, list | tuple):
        return given
    return given[0] if len(set(given)) == 1 else list(given)


def _plain(given: Any) -> Any:
    return list(given) if isinstance(given, tuple) else given


def _place(recipe: Recipe, part: str) -> Path | None:
    """The weights of a part, None if they are no local files. Raises UserError for a missing teacher."""
    if part == TEACHER:
        weights = recipe.teacher.weights
        return resolve(weights, KEYS[TEACHER]) if weights else None
    if part == PRIOR:
        return _local_folder(recipe.augment.prior)
    model = recipe.filter.model
    return _local_folder(model.removeprefix(LOCAL_DIR)) if model.startswith(LOCAL_DIR) else None


def _local_folder(name: str) -> Path | None:
    """None for a name on a hub."""
    try:
        return resolve(name, "")
    except UserError:
        return None


def _fact(name: str, path: Path | None) -> dict[str, Any]:
    if path is None:
        return {"name": name, "sha256": None, "licence": f"see the card of {name}"}
    return {"name": name, "sha256": _digest(_contents(path)), "licence": _licence(path)}


def _contents(path: Path) -> list[tuple[Path, str]]:
    """SHA-256 of a file and those it names, or of each file of a folder, and where it is from there."""
    found = []
    for file in sorted(path.rglob("*")) if path.is_dir() else weight_files(path, "teacher.weights"):
        if file.is_file():
            found.append((Path(os.path.relpath(file, path)), sha256_of(file)))
    return found


def _digest(contents: Sequence[tuple[Path, str]]) -> str:
    """As sha256sum prints it for a single file; of several over their places and hashes."""
    return contents[0][1] if len(contents) == 1 else _digest_with_name(contents, "")


def _digest_with_name(contents: Sequence[tuple[Path, str]], name: str) -> str:
    """Of contents in a file or folder of this name."""
    digest = hashlib.sha256()
    for place, content in contents:
        digest.update(f"{Path(name, place)} {content}\n".encode())
    return digest.hexdigest()


def _licence(path: Path) -> str:
    """As a model card beside or above the weights states it."""
    folder = path if path.is_dir() else path.parent
    for card in (folder / "README.md", folder.parent / "README.md"):
        if card.is_file() and (stated := _stated(card.read_text(encoding="utf-8", errors="replace"))):
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
