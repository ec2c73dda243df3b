"""Turn recipes, as nested mappings, into typed configurations, with errors that name the recipe's keys."""

import re
from argparse import SUPPRESS, ArgumentError
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from itertools import chain
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from engine import recipes
from engine.config.checked import Checked, independent, unchecked
from engine.config.recipe import Recipe, derived
from engine.errors import SettingsError, UserError


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The settings of a recipe from one source, right or wrong."""

    settings: Mapping[str, Any]
    """Value by dotted key."""
    source: str
    """Where they come from, for messages."""
    is_command_line: bool = False
    """Whether None stands for a flag without a value."""
    flags: Collection[str] = ()
    """Names of flags that are no settings, which an unknown key may be meant to be."""

    @classmethod
    def of(cls, mapping: Mapping[str, Any], source: str) -> Self:
        """Return the layer of nested mappings."""
        return cls(settings=dict(_leaves(mapping, Recipe)), source=source)


RENAMED = {"evaluate.dataset": "write evaluate.data: fashion-mnist, or null instead of none"}
"""Keys of earlier versions, and what to write instead."""


def load_recipe(name_or_file: str, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return a shipped recipe or a YAML file, with `overrides` by dotted key: `{"synthesize.steps": 3}`.

    Raises UserError for an unknown recipe, and SettingsError for all keys and values that are not allowed.
    """
    return to_recipe(recipes.read(name_or_file), f"recipe '{name_or_file}'", overrides)


def to_recipe(
    mapping: Mapping[str, Any], source: str, overrides: Mapping[str, object] | None = None
) -> Recipe:
    """Return the recipe of nested mappings, as `load_recipe` does; `source` is their origin, for messages."""
    base = Layer.of(mapping, source)
    given = Layer.of(overrides or {}, "the overrides")
    parser = ArgumentParser(exit_on_error=False)
    with all_faults(base, given):
        add_recipe(parser, base)
        options = parser.instantiate(parser.parse_object({**base.settings, **given.settings}))
    return pop_recipe(options)


def add_recipe(parser: ArgumentParser, base: Layer) -> None:
    """Add a flag `--section.key` for every setting, with the values of `base` as the defaults.

    `parser` needs `exit_on_error=False`. Raises ArgumentError for a key or value that is not allowed.
    """
    parser.add_class_arguments(Recipe)
    for action in parser._actions:
        if action.dest in Recipe.__dataclass_fields__ and action.dest not in setting_types():
            action.help = SUPPRESS  # jsonargparse would also accept a file for a whole section
    parser.parse_object(dict(base.settings))  # parse_args does not check defaults
    parser.set_defaults(dict(base.settings))


def pop_recipe(options: Namespace) -> Recipe:
    """Remove the recipe's settings from the options of a parser, and return the recipe, with `derived`."""
    return derived(Recipe(**{field.name: options.pop(field.name) for field in fields(Recipe)}))


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
def all_faults(*layers: Layer) -> Iterator[None]:
    """If the block refuses a setting of these layers, raise SettingsError with all that are wrong.

    Without such a setting, raises UserError for an ArgumentError.
    """
    types = setting_types()
    for layer in layers:  # jsonargparse accepts null everywhere, and the start of a key on the command line
        for key, value in layer.settings.items():
            if key not in types or (value is None and not _accepts_null(types[key])):
                raise SettingsError(_faults(layers))
    try:
        yield
    except (ArgumentError, UserError) as error:
        if found := _faults(layers):
            raise SettingsError(found) from None
        if isinstance(error, ArgumentError):
            raise UserError(str(error)) from None
        raise


def _leaves(mapping: Mapping[str, Any], owner: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every setting, and of every key that is none."""
    types = get_type_hints(owner)
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        if is_dataclass(types.get(key)) and isinstance(value, dict):
            yield from _leaves(value, types[key], f"{path}.")
        else:
            yield path, value


def _faults(layers: Sequence[Layer]) -> list[str]:
    """Return a line for each setting that is unknown, missing or wrong, and for each contradiction.

    What may be the consequence of another fault is left out.
    """
    types = setting_types()
    given = {key for layer in layers for key in layer.settings}
    values: dict[str, Any] = {}
    found: list[str] = []
    wrong: set[str] = set()
    for layer in layers:
        for key, value in layer.settings.items():
            try:
                values[key] = _typed(key, value, types, layer)
            except UserError as error:
                found.append(str(error))
                wrong |= {key} if key in types else {*_meant(key, types.keys() - given)}
    for key in _required(Recipe):
        if key not in given | wrong:
            found.append(f"{key} is missing in {layers[0].source}; set it there or on the command line")
            wrong.add(key)
        values.setdefault(key, types[key]())  # an empty one, whose faults are left out
    recipe = _unchecked(Recipe, values)
    parts = [part for part in (*vars(recipe).values(), recipe) if isinstance(part, Checked)]
    return found + independent(
        chain.from_iterable(part.faults() for part in parts),
        chain.from_iterable(part.contradictions() for part in parts),
        wrong,
    )


def _typed(key: str, value: Any, types: Mapping[str, Any], layer: Layer) -> Any:
    """Return the value of a setting in its type. Raises UserError for an unknown key or another type."""
    if key not in types:
        raise UserError(_unknown(key, value, types, layer))
    if value is None and layer.is_command_line:
        raise UserError(f"argument --{key}: expected one argument")
    if value is None and not _accepts_null(types[key]):
        raise UserError(f"{key} must be {_describe(types[key])}, got null")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{key}", type=types[key])
    try:
        return parser.parse_object({key: value})[key]
    except ArgumentError as error:
        raise UserError(_in_words(str(error), types)) from None


def _unchecked(kind: type[Any], values: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a configuration with the values by dotted key, whose checks have not run."""
    types = get_type_hints(kind)
    given: dict[str, Any] = {}
    for field in fields(kind):
        key = f"{prefix}{field.name}"
        if is_dataclass(types[field.name]):
            given[field.name] = _unchecked(types[field.name], values, f"{key}.")
        elif key in values:
            given[field.name] = values[key]
    return unchecked(kind, given)


def _required(owner: Any, prefix: str = "") -> Iterator[str]:
    """Yield the settings that have no default."""
    types = get_type_hints(owner)
    for field in fields(owner):
        if is_dataclass(types[field.name]):
            yield from _required(types[field.name], f"{prefix}{field.name}.")
        elif field.default is MISSING:
            yield f"{prefix}{field.name}"


def _unknown(key: str, value: Any, known: Collection[str], layer: Layer) -> str:
    if any(name.startswith(f"{key}.") for name in known):
        if layer.is_command_line:
            return f"'{key}' in {layer.source} is a whole section; set one of its keys, --help lists them"
        return f"{key} in {layer.source} is a section and must be a mapping, got {value!r}"
    if key in RENAMED:
        return f"unknown key '{key}' in {layer.source}; {RENAMED[key]}"
    near = _nearest(key, {*known, *layer.flags})
    guess = f"did you mean '{near[0]}'?" if near else "--help lists every key"
    return f"unknown key '{key}' in {layer.source}; {guess}"


def _meant(key: str, absent: Collection[str]) -> Iterator[str]:
    """Yield those of the absent settings that a section without keys, or an unknown key, may stand for."""
    section = [name for name in absent if name.startswith(f"{key}.")]
    yield from section or _nearest(key, absent)


def _nearest(key: str, known: Collection[str]) -> list[str]:
    """Return the key that `key` may be meant to be, if there is one."""
    return get_close_matches(key, sorted(known), 1)


def _in_words(message: str, types: Mapping[str, Any]) -> str:
    """Rewrite jsonargparse's message about a setting: the values that it accepts, and the one it got."""
    pattern = r'Parser key "(?P<key>[\w.]+)":.*(?:Got|Given) value: (?P<value>[^\n]*)'
    found = re.match(pattern, message, re.DOTALL)
    if found and found["key"] in types:
        return f"{found['key']} must be {_describe(types[found['key']])}, got '{found['value']}'"
    return message


def _accepts_null(kind: Any) -> bool:
    return NoneType in get_args(kind)


def _describe(kind: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
    if kind in plain:
        return plain[kind]
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if get_origin(kind) in (Union, UnionType):
        *first, last = map(_describe, arguments)
        return f"{', '.join(first)} or {last}"
    if kind == dict[str, str]:
        return "a mapping of names to text, numbers in quotes"
    if get_origin(kind) is dict:
        return f"a mapping of names, each to {_describe(arguments[1])}"
    if Ellipsis not in arguments and len(arguments) > 1:
        return f"[{', '.join(map(_describe, arguments))}]"
    several = {int: "whole numbers", float: "numbers", str: "texts"}.get(arguments[0])
    return f"a list of {several}" if several else f"a list, each {_describe(arguments[0])}"
