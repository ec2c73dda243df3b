"""Turn recipes, as nested mappings, into typed configurations, with errors that name the recipe's key."""

import re
from argparse import SUPPRESS, ArgumentError
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from engine import recipes
from engine.config.recipe import Recipe
from engine.errors import UserError

RENAMED = {"evaluate.dataset": "write evaluate.data: fashion-mnist, or null instead of none"}
"""Keys of earlier versions, and what to write instead."""


def load_recipe(name_or_file: str, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return a shipped recipe or a YAML file, with `overrides` by dotted key: `{"synthesize.steps": 3}`.

    Raises UserError if a key or value is not allowed; the message names the key.
    """
    return to_recipe(recipes.read(name_or_file), f"recipe '{name_or_file}'", overrides)


def to_recipe(
    mapping: Mapping[str, Any], source: str, overrides: Mapping[str, object] | None = None
) -> Recipe:
    """Return the recipe of nested mappings, as `load_recipe` does; `source` is their origin, for messages."""
    given = overrides or {}
    check_keys(given, "the overrides", setting_types())
    parser = ArgumentParser(exit_on_error=False)
    settings = add_recipe(parser, mapping, source)
    with errors_in_words():
        options = parser.instantiate(parser.parse_object({**settings, **given}))
    return pop_recipe(options)


def add_recipe(parser: ArgumentParser, mapping: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Add a flag `--section.key` for every setting, with the values of `mapping` as the defaults.

    Args:
        parser: needs `exit_on_error=False`.
        mapping: a recipe as nested mappings.
        source: origin of `mapping`, for messages.

    Returns:
        The settings of `mapping` by dotted key.

    Raises:
        UserError: if a key or value is not allowed; the message names the key.
    """
    parser.add_class_arguments(Recipe)
    for action in parser._actions:
        if action.dest in Recipe.__dataclass_fields__ and action.dest not in setting_types():
            action.help = SUPPRESS  # jsonargparse would also accept a file for a whole section
    settings = dict(_leaves(mapping, Recipe, source))
    with errors_in_words():
        parser.parse_object(settings)  # parse_args does not check defaults
        parser.set_defaults(settings)
    return settings


def pop_recipe(options: Namespace) -> Recipe:
    """Remove the recipe's settings from the options of a parser, and return the recipe."""
    return Recipe(**{field.name: options.pop(field.name) for field in fields(Recipe)})


def check_keys(given: Collection[str], source: str, known: Collection[str]) -> None:
    """Raise UserError for the first key that is not in `known`."""
    for key in given:
        if key not in known:
            raise _unknown(key, source, known)


def setting_types(owner: Any = Recipe, prefix: str = "") -> dict[str, Any]:
    """Return the type of every setting by dotted key."""
    types: dict[str, Any] = {}
    for name, kind in get_type_hints(owner).items():
        if is_dataclass(kind):
            types |= setting_types(kind, f"{prefix}{name}.")
        else:
            types[f"{prefix}{name}"] = kind
    return types


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Raise UserError for an ArgumentError: the key, the values that it accepts, and the one it got."""
    try:
        yield
    except ArgumentError as error:
        raise UserError(_in_words(str(error))) from None


def _leaves(
    mapping: Mapping[str, Any], owner: type, source: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every setting. Raises UserError for a key that `owner` does not have."""
    types = get_type_hints(owner)
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        if key not in types:
            raise _unknown(path, source, setting_types())
        if not is_dataclass(types[key]):
            yield path, value
        elif isinstance(value, dict):
            yield from _leaves(value, types[key], source, f"{path}.")
        else:
            raise UserError(f"{path} in {source} is a section and must be a mapping, got {value!r}")


def _unknown(key: str, source: str, known: Collection[str]) -> UserError:
    if any(name.startswith(f"{key}.") for name in known):
        return UserError(f"'{key}' in {source} is a whole section; set one of its keys, --help lists them")
    if key in RENAMED:
        return UserError(f"unknown key '{key}' in {source}; {RENAMED[key]}")
    near = get_close_matches(key, sorted(known), 1)
    guess = f"did you mean '{near[0]}'?" if near else "--help lists every key"
    return UserError(f"unknown key '{key}' in {source}; {guess}")


def _in_words(message: str) -> str:
    """Rewrite jsonargparse's message if it is about a setting."""
    pattern = r'Parser key "(?P<key>[\w.]+)":.*(?:Got|Given) value: (?P<value>[^\n]*)'
    found = re.match(pattern, message, re.DOTALL)
    if found and found["key"] in (types := setting_types()):
        return f"{found['key']} must be {_describe(types[found['key']])}, got '{found['value']}'"
    return message


def _describe(kind: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
    if kind in plain:
        return plain[kind]
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_describe, arguments))
    if get_origin(kind) is dict:
        return f"a mapping of names, each to {_describe(arguments[1])}"
    return f"a list, each {_describe(arguments[0])}"
