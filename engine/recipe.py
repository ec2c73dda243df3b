"""One experiment: a configuration section for each part of the engine, from YAML and the command line."""

import json
import re
from argparse import SUPPRESS, ArgumentError
from argparse import ArgumentParser as PlainParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from engine import recipes
from engine.bank.config import StorageConfig
from engine.compute import ComputeConfig
from engine.config.decides import decides, sections
from engine.datasets.config import EvaluateConfig
from engine.errors import UserError
from engine.feed.config import FeedConfig
from engine.models.config import ClassifierConfig
from engine.runtime.tensorrt_config import TensorRtConfig
from engine.schedule import ScheduleConfig
from engine.stages.augment_config import AugmentConfig
from engine.stages.distill_config import DistillConfig
from engine.stages.filter_config import FilterConfig
from engine.stages.synthesize_config import SynthesizeConfig
from engine.stages.views_config import Views

DEFAULT = "fashion-mnist"
CONFIG = "config.yaml"
"""Name, in a run's folder, of the recipe it was made with."""

LARGEST_RATIO = 1_000_000
"""Of two classes' weights."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run's result."""

    name: str = field(metadata=decides())
    """Name of the recipe, and of the run's folder; the file's name unless given."""
    seed: int = field(default=0, metadata=decides("images"))
    """Seed of every random draw."""
    class_names: tuple[str, ...] = field(metadata=decides("images", "student"))
    """Name of each class, in the order of the teacher's logits."""
    compute: ComputeConfig = field(default=ComputeConfig(), metadata=decides("execution"))
    """Device, precision and threads"""
    tensorrt: TensorRtConfig = field(default=TensorRtConfig(), metadata=decides("execution"))
    """How TensorRT's engines are built"""
    teacher: ClassifierConfig = field(metadata=decides("images", "student"))
    """The trained classifier to distill from"""
    student: ClassifierConfig = field(metadata=decides("student"))
    """The classifier to train"""
    schedule: ScheduleConfig = field(default=ScheduleConfig(), metadata=decides("student"))
    """How much of each kind of work"""
    synthesize: SynthesizeConfig = field(metadata=decides("images"))
    """Images from the teacher alone"""
    augment: AugmentConfig = field(metadata=decides("images"))
    """Variations of the synthesized images by a diffusion prior"""
    filter: FilterConfig = field(metadata=decides("images"))
    """Which variations are kept"""
    storage: StorageConfig = field(default=StorageConfig(), metadata=decides("images"))
    """The files of the bank's images"""
    feed: FeedConfig = field(default=FeedConfig(), metadata=decides("execution"))
    """From the files to the student"""
    distill: DistillConfig = field(metadata=decides("student"))
    """Training of the student on the bank"""
    evaluate: EvaluateConfig = field(default=EvaluateConfig(), metadata=decides("student"))
    """The test set"""

    def __post_init__(self) -> None:
        num_classes = len(self.class_names)
        for section in ("teacher", "student"):
            getattr(self, section).check(section)
            given = getattr(self, section).num_classes
            if given != num_classes:
                raise UserError(
                    f"{section}.num_classes is {given} but class_names has {num_classes}; make them agree"
                )
        if self.student.image_size != self.teacher.image_size:
            raise UserError(
                f"student.image_size is {self.student.image_size} but teacher.image_size is"
                f" {self.teacher.image_size}; student and teacher see the same images, make them agree"
            )
        if self.evaluate.dataset == "fashion-mnist" and (num_classes, self.teacher.image_size) != (10, 32):
            raise UserError(
                "evaluate.dataset fashion-mnist has 10 classes of 32x32 images, the teacher has "
                f"{num_classes} of {self.teacher.image_size}x{self.teacher.image_size}; "
                "set evaluate.dataset to none"
            )
        if self.teacher.image_size % 4:
            raise UserError(
                f"teacher.image_size must be a multiple of 4, which the generator doubles twice,"
                f" got {self.teacher.image_size}"
            )
        self._check_views()
        for name in ("weights", "weights_key"):
            if (given := getattr(self.student, name)) is not None:
                raise UserError(f"student.{name} is {given}; a student starts from random weights, set null")
        self._check_class_weights()
        if self.augment.class_condition == "text" and not self.filter.model:
            raise UserError(
                "augment.class_condition text needs the text tower of filter.model, which is empty; "
                "give an open_clip model, or set augment.class_condition to none"
            )

    def _check_class_weights(self) -> None:
        given, known = self.synthesize.class_weights, set(self.class_names)
        for name in given or ():
            if not isinstance(name, str):
                raise UserError(f"synthesize.class_weights: {name!r} is not text; write the class in quotes")
            if name not in known:
                near = get_close_matches(name, self.class_names, 1)
                guess = f"did you mean '{near[0]}'?" if near else "give names of class_names"
                raise UserError(f"synthesize.class_weights: no class '{name}'; {guess}")
        weights = [weight for weight in self.class_weights or (1.0,) if weight > 0]
        if not weights:
            raise UserError("synthesize.class_weights leaves no class; give one class a weight above 0")
        if max(weights) > LARGEST_RATIO * min(weights):
            raise UserError(
                f"synthesize.class_weights: {max(weights):g} is more than {LARGEST_RATIO:,} times another "
                f"class's {min(weights):g}; give 0 to a class that you do not want"
            )

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """How often each class is drawn, in the order of `class_names`; None: all alike."""
        given = self.synthesize.class_weights
        return None if given is None else tuple(given.get(name, 1.0) for name in self.class_names)

    @property
    def fields(self) -> dict[str, Any]:
        """All settings as nested mappings; views of synthesis that follow `distill` are written out."""
        fields = asdict(self)
        fields["synthesize"] |= asdict(self.synthesis_views)
        return fields

    @property
    def synthesis_views(self) -> Views:
        """What the teacher sees of an image that is synthesized."""
        return self.synthesize.views(otherwise=self.distill.views)

    def _check_views(self) -> None:
        size = self.teacher.image_size
        for section in ("distill", "synthesize"):
            padding = getattr(self, section).crop_padding
            if padding is not None and padding >= size:
                raise UserError(
                    f"{section}.crop_padding is {padding}, but teacher.image_size is {size}; set it lower"
                )


OF_MACHINE_SECTIONS = sections(Recipe, "execution")
"""Sections of a bank's recipe that a later command resolves for itself."""


def load_recipe(name_or_file: str, overrides: Mapping[str, object] | None = None) -> Recipe:
    """A shipped recipe or a YAML file, with `overrides` by dotted key, e.g. `{"synthesize.steps": 3}`.

    Raises UserError that names the key (or the recipe) for whatever does not fit.
    """
    settings = [f"--{key}={_as_text(value)}" for key, value in (overrides or {}).items()]
    return parse(ArgumentParser(exit_on_error=False), [f"--recipe={name_or_file}", *settings])[0]


def parse(
    parser: ArgumentParser,
    arguments: Sequence[str],
    *,
    base: Mapping[str, Any] | None = None,
    source: str = "the bank",
) -> tuple[Recipe, Namespace]:
    """The recipe that `--recipe` names under the `--section.key VALUE` given; and the parser's own options.

    `base`: a recipe as nested mappings, instead of the one that `--recipe` names; `source`: where it is from.

    Adds those flags to `parser`, which must have `exit_on_error=False`; `--help` shows the recipe's values as
    the defaults. Raises UserError that names the key (or the recipe) for whatever does not fit.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    known = f"one of {', '.join(recipes.names())}; or a YAML file"
    parser.add_argument("--recipe", metavar="NAME or FILE", default=DEFAULT, help=known)
    own_flags = {flag for action in parser._actions for flag in action.option_strings}
    parser.add_class_arguments(Recipe)
    for action in parser._actions:
        if action.dest in Recipe.__dataclass_fields__ and action.dest not in _keys():
            action.help = SUPPRESS  # jsonargparse would also take a file for a whole section
    try:
        chosen = _chosen_recipe(arguments)
        mapping, source = (recipes.read(chosen), f"recipe '{chosen}'") if base is None else (base, source)
        settings = dict(_leaves(mapping, Recipe, source))
        parser.parse_object(settings)  # parse_args takes defaults unchecked
        parser.set_defaults(settings)
        _check_flags(arguments, own_flags)
        options = parser.instantiate(parser.parse_args(list(arguments)))
    except ArgumentError as error:
        raise UserError(_one_line(str(error))) from None
    return Recipe(**{field.name: options.pop(field.name) for field in fields(Recipe)}), options


def gives_recipe(arguments: Sequence[str]) -> bool:
    """Whether a command line names a recipe."""
    return any(argument.partition("=")[0] == "--recipe" for argument in arguments)


def name_of(arguments: Sequence[str], otherwise: str | None = None) -> str:
    """The name that a command line's recipe will have: `--name`, or the recipe's that `--recipe` names.

    `otherwise`: of the settings that are taken without `--recipe`. Raises UserError for no recipe.
    """
    picker = PlainParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    picker.add_argument("--name")
    given = picker.parse_known_args(arguments)[0].name
    if given or (otherwise and not gives_recipe(arguments)):
        return str(given or otherwise)
    return str(recipes.read(_chosen_recipe(arguments))["name"])


def _chosen_recipe(arguments: Sequence[str]) -> str:
    picker = PlainParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    picker.add_argument("--recipe", default=DEFAULT)
    return picker.parse_known_args(arguments)[0].recipe


def _leaves(
    mapping: Mapping[str, Any], owner: type, source: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting. Raises UserError for a key that `owner` does not have."""
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
    """Type of every setting by dotted key."""
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(owner).items():
        keys |= _keys(kind, f"{prefix}{name}.") if is_dataclass(kind) else {f"{prefix}{name}": kind}
    return keys


def _one_line(message: str) -> str:
    """jsonargparse's message in the words of a recipe: the key, what it takes, what it got."""
    pattern = r'Parser key "(?P<key>[\w.]+)":.*(?:Got|Given) value: (?P<value>[^\n]*)'
    found = re.match(pattern, message, re.DOTALL)
    if found and found["key"] in (keys := _keys()):
        return f"{found['key']} must be {_in_words(keys[found['key']])}, got '{found['value']}'"
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


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults written out; `load_recipe` reads it back."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(recipe))), sort_keys=False, width=110)


def differences(old: Recipe, new: Recipe) -> Iterator[str]:
    """`key: old value -> new value` of each setting that differs."""
    before, after = _flat(old.fields), _flat(new.fields)
    for key in before | after:
        if before.get(key) != after.get(key):
            yield f"{key}: {before.get(key)!r} -> {after.get(key)!r}"


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
