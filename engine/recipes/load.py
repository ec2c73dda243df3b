"""Load recipes as typed configurations: YAML with overrides, and errors in the terms of a recipe."""

import json
import re
from argparse import SUPPRESS, ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from engine import recipes
from engine.config.recipe import Recipe
from engine.errors import UserError


def load_recipe(name_or_file: str, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Load a shipped recipe or a YAML file, with `overrides` by dotted key, e.g. `{"synthesize.steps": 3}`.

    Raises a UserError that names the key or the recipe for anything unknown or invalid.
    """
    settings = [f"--{key}={_as_text(value)}" for key, value in (overrides or {}).items()]
    parser = ArgumentParser(exit_on_error=False)
    return parse_recipe(parser, settings, recipes.read(name_or_file), f"recipe '{name_or_file}'")[0]


def parse_recipe(
    parser: ArgumentParser, arguments: Sequence[str], mapping: Mapping[str, Any], source: str
) -> tuple[Recipe, Namespace]:
    """Return the recipe `mapping` with the flags `--section.key VALUE` applied, and the parser's own options.

    Adds those flags to `parser`, which must have `exit_on_error=False`; `--help` shows the recipe's values as
    the defaults. Raises a UserError that names the key for anything unknown or invalid.

    Args:
        mapping: a recipe as nested mappings.
        source: what `mapping` was read from, for messages.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    known = f"one of {', '.join(recipes.names())}; or a YAML file"
    parser.add_argument("--recipe", metavar="NAME or FILE", default=recipes.DEFAULT, help=known)
    own_flags = {flag for action in parser._actions for flag in action.option_strings}
    parser.add_class_arguments(Recipe)
    for action in parser._actions:
        if action.dest in Recipe.__dataclass_fields__ and action.dest not in _keys():
            action.help = SUPPRESS  # jsonargparse would also take a file for a whole section
    try:
        settings = dict(_leaves(mapping, Recipe, source))
        parser.parse_object(settings)  # parse_args does not check defaults
        parser.set_defaults(settings)
        _check_flags(arguments, own_flags)
        options = parser.instantiate(parser.parse_args(list(arguments)))
    except ArgumentError as error:
        raise UserError(_one_line(str(error))) from None
    return Recipe(**{field.name: options.pop(field.name) for field in fields(Recipe)}), options


def _leaves(
    mapping: Mapping[str, Any], owner: type, source: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every setting. Raises UserError for a key that `owner` does not have."""
    kinds = get_type_hints(owner)
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        if key not in kinds:
            raise _unknown(path, source, set(_keys()))
        if not is_dataclass(kinds[key]):
            yield path, value
        elif isinstance(value, dict):
            yield from _leaves(value, kinds[key], source, f"{path}.")
        else:
            raise UserError(f"{path} in {source} is a section and must be a mapping, got {value!r}")


def _check_flags(arguments: Sequence[str], own_flags: set[str]) -> None:
    keys = {*_keys(), *(flag.removeprefix("--") for flag in own_flags)}
    for argument in arguments:
        flag = argument.split("=", 1)[0]
        if flag.startswith("--") and flag[2:] not in keys:
            raise _unknown(flag[2:], "the command line", keys)


def _unknown(key: str, source: str, keys: set[str]) -> UserError:
    if any(known.startswith(f"{key}.") for known in keys):
        return UserError(f"'{key}' in {source} is a whole section; set one of its keys, --help lists them")
    near = get_close_matches(key, sorted(keys), 1)
    guess = f"did you mean '{near[0]}'?" if near else "--help lists every key"
    return UserError(f"unknown key '{key}' in {source}; {guess}")


def _keys(owner: Any = Recipe, prefix: str = "") -> dict[str, Any]:
    """Return the type of every setting by dotted key."""
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(owner).items():
        keys |= _keys(kind, f"{prefix}{name}.") if is_dataclass(kind) else {f"{prefix}{name}": kind}
    return keys


def _one_line(message: str) -> str:
    """Return jsonargparse's message in the terms of a recipe: the key, what it takes, and what it got."""
    pattern = r'Parser key "(?P<key>[\w.]+)":.*(?:Got|Given) value: (?P<value>[^\n]*)'
    match = re.match(pattern, message, re.DOTALL)
    if match and match["key"] in (keys := _keys()):
        return f"{match['key']} must be {_in_words(keys[match['key']])}, got '{match['value']}'"
    return message


def _in_words(kind: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
    if kind in plain:
        return plain[kind]
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, parts))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_in_words(part) for part in parts)
    if get_origin(kind) is dict:
        return f"a mapping of names, each to {_in_words(parts[1])}"
    return f"a list, each {_in_words(parts[0])}"


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
