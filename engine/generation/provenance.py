"""What a bank's images depend on: the settings that decide them, and the networks' weights and licences."""

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
"""Fields of the recipe, most of them sections, that a bank's settings hash covers."""
DECIDING_COMPUTE = tuple(
    key.removeprefix("compute.")
    for key, effects in settings(Recipe).items()
    if key.startswith("compute.") and "images" in effects
)
"""Fields of the section compute that the hash covers."""
NOT_STATED = "not stated in its files"
"""Licence of a network without a model card."""

TEACHER, PRIOR, CLIP = "teacher", "diffusion prior", "CLIP"
KEYS = {TEACHER: "teacher.weights", PRIOR: "augment.prior", CLIP: "filter.model"}
"""The setting that names the weights of each network."""
INTERFACE = ("in_channels", "mean", "std", "weights_key", "output")
"""Fields of the teacher that decide what it makes of an image, apart from its weights."""


def bank_header(recipe: Recipe, *, of_run: bool = False) -> Header:
    """Return the header of a bank made by a resolved recipe.

    `of_run`: whether shards depend on earlier ones and on a student, as in `engine.run`.
    Raises UserError if weights cannot be found.
    """
    fields = json.loads(json.dumps(recipe.fields))
    facts = weights_of(recipe)
    deciding: dict[str, Any] = {name: fields[name] for name in DECIDING}
    deciding["compute"] = {name: fields["compute"][name] for name in DECIDING_COMPUTE}
    deciding["weights"] = {network: fact["sha256"] for network, fact in facts.items()}
    for network, fact in facts.items():
        if fact["sha256"]:  # decides instead of the path
            section, _, field = KEYS[network].partition(".")
            deciding[section] = {**deciding[section], field: None}
    deciding["of_run"] = of_run
    return Header(
        recipe=fields,
        settings_sha256=hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest(),
        class_names=recipe.names,
        image_size=recipe.teacher.size,
        channels=stored_channels(recipe.storage.codec, is_grey=recipe.teacher.is_grey),
        codec=recipe.storage.codec,
        quality=recipe.storage.quality,
        facts=facts,
    )


def weights_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return name, sha256 and licence of each network that the recipe uses.

    sha256 is None if the weights are not local files.
    """
    facts = {TEACHER: teacher_of(recipe)}
    if recipe.augment.method == "variation":
        facts[PRIOR] = _fact(recipe.augment.prior, _weights_path(recipe, PRIOR))
    if recipe.uses_clip:
        folder = recipe.filter.model.removeprefix(LOCAL_DIR)
        name = " ".join(filter(None, (folder, recipe.filter.pretrained)))
        facts[CLIP] = _fact(name, _weights_path(recipe, CLIP))
    return facts


def teacher_of(recipe: Recipe) -> dict[str, Any]:
    """Return the teacher's entry of `weights_of`."""
    return _fact(recipe.teacher.name, _weights_path(recipe, TEACHER))


def teacher_sha256(recipe: Recipe) -> str:
    """Return a hash of what decides the teacher's outputs: its weights, inputs and outputs."""
    fact, teacher = teacher_of(recipe), recipe.teacher
    named = fact["sha256"] or [teacher.name, teacher.weights]
    fields = (getattr(teacher, field) for field in (*INTERFACE, "feature", "size"))
    deciding = [named, *map(_normalized, fields)]
    return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()


def require_same_weights(
    recipe: Recipe,
    facts: Mapping[str, Any],
    made_with: Sequence[Mapping[str, Any]],
    *,
    whose: str,
    fix: str,
    networks: Iterable[str] = (TEACHER,),
) -> None:
    """Compare the recipe's weights with those that a run or bank was made with.

    A copy under another name counts as the same file, although hashes of earlier versions cover the name.
    Weights without a hash on either side are not compared.

    Args:
        facts: what `weights_of` returned at that time.
        made_with: the recipes of that time, as mappings.

    Raises:
        UserError: for weights that differ; the message names `whose` and the file, and ends with `fix`.
    """
    for network in networks:
        fact, path = facts.get(network), _weights_path(recipe, network)
        known = fact.get("sha256") if isinstance(fact, Mapping) else None
        if path is None or not isinstance(known, str):
            continue
        contents = _contents(path)
        names = [path.name, path.resolve().name]
        names += [name for made in made_with if (name := _file_name(made, network))]
        found = _digest(contents)
        if known != found and known not in (_digest_with_name(contents, name) for name in names):
            raise UserError(
                f"{whose} was made with another {network}: its sha256 was {known[:12]}, but "
                f"{KEYS[network]} {path} has {found[:12]}; {fix}"
            )


def require_teacher_of_bank(recipe: Recipe, url: str, header: Header) -> None:
    """Raise UserError if the bank was made with another teacher: other weights, inputs or outputs."""
    made_with = recipes_of(header.recipe)
    fix = "restore that file, or make a bank with this teacher"
    for facts in _by_bank(header.facts):
        require_same_weights(recipe, facts, made_with, whose=f"--bank {url}", fix=fix)
    for made in made_with:
        for field in INTERFACE:
            then, now = _setting(made, f"teacher.{field}"), getattr(recipe.teacher, field)
            if then is not None and _normalized(then) != _normalized(now):
                raise UserError(
                    f"--bank {url} was made with teacher.{field} {_as_list(then)}, but this command has "
                    f"{_as_list(now)}; remove --recipe and --teacher.{field}, or make a bank with it"
                )


def require_same_facts(then: Mapping[str, Any], now: Mapping[str, Any], *, whose: str) -> None:
    """Raise UserError for hashes that differ; `then` and `now` are as `weights_of` returns them."""
    for network, fact in now.items():
        old = then.get(network)
        known = old.get("sha256") if isinstance(old, Mapping) else None
        if known and fact["sha256"] and known != fact["sha256"]:
            raise UserError(
                f"{whose} was begun with another {network}: its sha256 was {known[:12]}, but {KEYS[network]} "
                f"now has {fact['sha256'][:12]}; restore that file, or set another --out"
            )


def _by_bank(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the facts of a bank, or of each bank that it was merged from."""
    if facts and all(name.startswith("bank ") for name in facts):
        return [each for bank in facts.values() if isinstance(bank, Mapping) for each in _by_bank(bank)]
    return [facts]


def _setting(recipe: Mapping[str, Any], key: str) -> Any:
    section, _, field = key.partition(".")
    fields = recipe.get(section)
    return fields.get(field) if isinstance(fields, Mapping) else None


def _file_name(recipe: Mapping[str, Any], network: str) -> str | None:
    given = _setting(recipe, KEYS[network])
    return Path(given.removeprefix(LOCAL_DIR)).name if isinstance(given, str) else None


def _normalized(value: Any) -> Any:
    """Return a list of equal numbers, one per channel, as that number."""
    if not isinstance(value, list | tuple):
        return value
    return value[0] if len(set(value)) == 1 else list(value)


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _weights_path(recipe: Recipe, network: str) -> Path | None:
    """Return the weights of a network, None if not local. Raises UserError if the teacher's are missing."""
    if network == TEACHER:
        weights = recipe.teacher.weights
        return resolve(weights, KEYS[TEACHER]) if weights else None
    if network == PRIOR:
        return _local_folder(recipe.augment.prior)
    model = recipe.filter.model
    return _local_folder(model.removeprefix(LOCAL_DIR)) if model.startswith(LOCAL_DIR) else None


def _local_folder(name: str) -> Path | None:
    """Return the folder, or None for a name on a hub."""
    try:
        return resolve(name, "")
    except UserError:
        return None


def _fact(name: str, path: Path | None) -> dict[str, Any]:
    if path is None:
        return {"name": name, "sha256": None, "licence": f"see the card of {name}"}
    return {"name": name, "sha256": _digest(_contents(path)), "licence": _licence(path)}


def _contents(path: Path) -> list[tuple[Path, str]]:
    """Return (relative path, SHA-256) of a file and the files it names, or of each file of a folder."""
    found = []
    for file in sorted(path.rglob("*")) if path.is_dir() else weight_files(path, "teacher.weights"):
        if file.is_file():
            found.append((Path(os.path.relpath(file, path)), sha256_of(file)))
    return found


def _digest(contents: Sequence[tuple[Path, str]]) -> str:
    """Return the SHA-256 of a single file, or of the relative paths and hashes of several."""
    return contents[0][1] if len(contents) == 1 else _digest_with_name(contents, "")


def _digest_with_name(contents: Sequence[tuple[Path, str]], name: str) -> str:
    """Return the SHA-256 of paths and hashes of files in a file or folder called `name`."""
    digest = hashlib.sha256()
    for path, content in contents:
        digest.update(f"{Path(name, path)} {content}\n".encode())
    return digest.hexdigest()


def _licence(path: Path) -> str:
    """Return the licence stated by a model card in the weights' folder or the one above."""
    folder = path if path.is_dir() else path.parent
    for card in (folder / "README.md", folder.parent / "README.md"):
        if card.is_file() and (
            licence := _front_matter_licence(card.read_text(encoding="utf-8", errors="replace"))
        ):
            return licence
    return NOT_STATED


def _front_matter_licence(card: str) -> str | None:
    """Return `license:` of a card's front matter."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    try:
        fields = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return None
    licence = fields.get("license") if isinstance(fields, dict) else None
    return str(licence) if licence else None
