"""Read a command line: the flags of every command, the short flags, and the recipe with its overrides."""

import re
from argparse import Action, ArgumentError
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from engine import recipes
from engine.config.classifier import ClassifierConfig
from engine.config.recipe import Recipe
from engine.errors import SettingsError, UserError
from engine.models.factory import Factory, is_factory
from engine.recipes.load import Layer, add_recipe, all_faults, pop_recipe
from engine.terminal import add_log_flags

RUNTIME = "--compute.runtime"
TEACHER = "--teacher"
SHORT = {
    TEACHER: "--teacher.name",
    "--runtime": RUNTIME,
    "--precision": "--compute.runtime_precision",
    "--threads": "--compute.threads",
}
METAVARS = {TEACHER: "NAME", "--runtime": "R", "--precision": "P", "--threads": "N"}
TRT = "--trt"
BATCH = "--batch"
BATCHES = ("--augment.micro_batch", "--filter.micro_batch")


class _HelpFormatter(DefaultHelpFormatter):
    """Shows the default of a flag, but neither its type nor a default that means `not given`."""

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        if not action.help or not text.startswith(f"{action.help} ("):
            return text
        is_setting = "." in action.dest  # whose null has a meaning
        if action.nargs == 0 or (action.default is None and not is_setting):
            return f"{action.help} (required)" if action.required else action.help
        return f"{action.help} (default: {_shown(action.default)})"


def _shown(default: object) -> str:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list | tuple):
        return f"[{', '.join(map(str, default))}]"
    return str(default) or "''"


def command_parser(module: str, description: str | None, *, exit_on_error: bool = False) -> ArgumentParser:
    """Return the parser of `python -m MODULE`; --help shows the docstrings of settings."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        exit_on_error=exit_on_error,
        formatter_class=_HelpFormatter,
    )


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Return the options, with objects for nested configurations. Raises ArgumentError for wrong arguments.

    This is the only place that calls a parser.
    """
    return parser.instantiate(parser.parse_args(list(arguments)))


def add_short_flags(parser: ArgumentParser) -> None:
    """Add the short flags, --quiet and --verbose to --help; `CommandLine.read` replaces the short ones."""
    for flag, full in SHORT.items():
        if flag != TEACHER:  # the recipe's section adds it
            parser.add_argument(flag, metavar=METAVARS[flag], help=f"short for {full}")
    parser.add_argument(BATCH, metavar="N or auto", help=f"short for {' and '.join(BATCHES)}")
    parser.add_argument(TRT, action="store_true", help=f"short for {RUNTIME} tensorrt")
    add_log_flags(parser)


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A command line, which is read before it is parsed, because the parser's defaults depend on it."""

    arguments: tuple[str, ...]
    """The command line with the short flags spelled out."""
    flags: Mapping[str, str | None]
    """Value of each flag by its name without dashes; None if no value follows the flag."""
    has_teacher: bool
    """Whether it names a teacher by the short flag, so that no shipped recipe is meant."""

    @classmethod
    def read(cls, arguments: Sequence[str]) -> "CommandLine":
        """Read the command line. Raises UserError if it selects two runtimes."""
        full = _spelled_out(arguments)
        flags: dict[str, str | None] = {}
        for argument, following in zip_longest(full, full[1:]):
            flag, equals, value = _split(argument)
            if flag.startswith("--"):
                flags[flag.removeprefix("--")] = value if equals else value_after(following)
        named = any(_split(argument)[0] == TEACHER for argument in arguments)
        return cls(arguments=tuple(full), flags=flags, has_teacher=named)

    def given(self, flag: str) -> bool:
        """Return whether the command line has this flag."""
        return flag in self.flags

    def value(self, flag: str) -> str | None:
        """Return the value of a flag, or None without it. Raises ArgumentError if the flag has no value."""
        value = self.flags.get(flag)
        if value is None and self.given(flag):
            raise ArgumentError(None, f"argument --{flag}: expected one argument")
        return value

    @property
    def recipe(self) -> str:
        """Name or file of `--recipe`, or the default recipe."""
        given = self.value("recipe")
        return recipes.DEFAULT if given is None else given

    def recipe_name(self, base_name: str | None = None) -> str:
        """Return the name that the recipe will have: `--name`, or else the name of the recipe itself.

        `base_name` is the name of the recipe that is used without `--recipe`. Raises UserError if `--recipe`
        names no recipe.
        """
        given = self.value("name")
        if given or (base_name and not self.given("recipe")):
            return str(given or base_name)
        return str(self._base()["name"])

    def _base(self) -> dict[str, Any]:
        """Return the recipe of the command line as nested mappings: its file, or a teacher's name alone."""
        if self.given("recipe") or not self.has_teacher:
            return recipes.read(self.recipe)
        teacher = self.value("teacher.name") or ""
        name = re.sub(r"\W+", "-", teacher.rstrip("/").rpartition("/")[2].rpartition(":")[2]).strip("-")
        return {"name": name or "teacher", "teacher": {"name": teacher}}

    def parse(
        self,
        parser: ArgumentParser,
        *,
        base: Mapping[str, Any] | None = None,
        source: str = "the bank",
        remembered: Mapping[str, Factory] | None = None,
    ) -> tuple[Recipe, Namespace]:
        """Return the recipe, not yet resolved, and the command's own options.

        Args:
            parser: a `command_parser` with the command's own flags; gets the recipe's.
            base: a recipe as nested mappings, instead of the one that `--recipe` names.
            source: origin of `base`, for messages.
            remembered: see `require_named`.

        Raises:
            SettingsError: if keys or values are not allowed; the message names all of them.
            UserError: if there is no such recipe, or an option of the command is wrong.
        """
        parser.add_argument(
            "--recipe",
            metavar="NAME or FILE",
            default=recipes.DEFAULT,
            help=f"one of {', '.join(recipes.names())}; or a YAML file",
        )
        if base is None:
            base, source = self._base(), f"recipe '{self.recipe}'"
        recipe_layer = Layer.of(base, source)
        own_flags = {flag.removeprefix("--") for each in parser._actions for flag in each.option_strings}
        with all_faults(recipe_layer, self._settings(own_flags)):
            add_recipe(parser, recipe_layer)
            _show_teacher(parser)
            options = parse(parser, self.arguments)
        recipe = pop_recipe(options)
        classifiers = {"teacher": recipe.teacher, "student": recipe.student}
        require_named(classifiers, self.flags.values(), remembered)
        return recipe, options

    def _settings(self, own_flags: Collection[str]) -> Layer:
        """Return what should be settings: all flags but the command's own."""
        settings = {key: value for key, value in self.flags.items() if key not in own_flags}
        return Layer(settings=settings, source="the command line", is_command_line=True, flags=own_flags)


def _show_teacher(parser: ArgumentParser) -> None:
    """Describe the short flag in --help, which jsonargparse would use for a file with the whole section."""
    for action in parser._actions:
        if TEACHER in action.option_strings:
            action.metavar = "NAME"
            action.help = (
                f"short for {SHORT[TEACHER]}; without --recipe, all other settings have their defaults or "
                "are read from the teacher"
            )


def _split(argument: str) -> tuple[str, str, str]:
    """Split `--flag=value` at its equals sign; both other parts are empty without one."""
    return argument.partition("=")


def value_after(following: str | None) -> str | None:
    """Return the argument after a flag, or None if argparse would read it as another flag."""
    return None if following is None or re.match(r"-\D", following) else following


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """Return the command line with the short flags replaced. Raises UserError for two runtimes."""
    full: list[str] = []
    given = iter(arguments)
    for argument in given:
        flag, equals, value = _split(argument)
        if flag == BATCH:
            size = value if equals else next(given, "")
            full += [f"{setting}={size}" for setting in BATCHES]
        elif argument == TRT:
            full.append(f"{RUNTIME}=tensorrt")
        else:
            full.append(SHORT.get(flag, flag) + equals + value)
    runtimes = [argument for argument in full if _split(argument)[0] == RUNTIME]
    if TRT in arguments and len(runtimes) > 1:
        raise UserError("--trt means --runtime tensorrt, but another runtime is also given; give one of them")
    return full


def require_named(
    configs: Mapping[str, ClassifierConfig],
    named: Collection[str | None],
    remembered: Mapping[str, Factory] | None = None,
) -> None:
    """Require that the command line names every Python factory, because a recipe file alone may not run code.

    Args:
        configs: the classifiers by section.
        named: values on the command line.
        remembered: factories of the run that the command continues, by section; they need not be named again
            unless their source has changed.

    Raises:
        SettingsError: if factories are not named; the message gives the sections and the factories.
    """
    if faults := list(_unnamed(configs, named, remembered or {})):
        raise SettingsError(faults)


def _unnamed(
    configs: Mapping[str, ClassifierConfig], named: Collection[str | None], remembered: Mapping[str, Factory]
) -> Iterator[str]:
    for section, config in configs.items():
        if not is_factory(config.name) or config.name in named:
            continue
        known = remembered.get(section)
        if known is None or known.name != config.name or not known.files:
            yield (
                f"{section}.name is '{config.name}', which is code that a recipe file alone may not run; "
                f"name it on the command line: --{section}.name {config.name}"
            )
        elif change := known.change(Factory.of(config.name)):
            yield (
                f"{section}.name is '{config.name}', which this run used from {change}; restore it, or name "
                f"it on the command line to accept the current source: --{section}.name {config.name}"
            )
