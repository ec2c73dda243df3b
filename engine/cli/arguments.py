"""From a command line to a recipe: which recipe, what overrides it, and the short flags spelled out."""

import re
from argparse import ArgumentError
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from engine import recipes
from engine.config.classifier import ClassifierConfig
from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.models.factory import Factory, is_factory
from engine.recipes.load import parse_recipe
from engine.terminal import add_log_flags

RUNTIME = "--compute.runtime"
SHORT = {
    "--runtime": RUNTIME,
    "--precision": "--compute.runtime_precision",
    "--threads": "--compute.threads",
}
TRT = "--trt"
BATCH = "--batch"
BATCHES = ("--augment.micro_batch", "--filter.micro_batch")


def add_short_flags(parser: ArgumentParser) -> None:
    """Show the short flags, --quiet and --verbose in --help; `CommandLine.read` replaces the short ones."""
    for flag, full in SHORT.items():
        parser.add_argument(flag, metavar=flag[2].upper(), help=f"short for {full}")
    parser.add_argument(BATCH, metavar="N or auto", help=f"short for {' and '.join(BATCHES)}")
    parser.add_argument(TRT, action="store_true", help=f"short for {RUNTIME} tensorrt")
    add_log_flags(parser)


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A command line, read before the parser, whose defaults depend on it; the parser then checks it."""

    arguments: tuple[str, ...]
    """The command line with the short flags spelled out."""
    flags: Mapping[str, str | None]
    """Value of each flag, by its name without dashes; None if no value follows it."""

    @classmethod
    def read(cls, arguments: Sequence[str]) -> "CommandLine":
        """Read the command line. Raises UserError for two runtimes."""
        full = _spelled_out(arguments)
        flags: dict[str, str | None] = {}
        for argument, following in zip_longest(full, full[1:]):
            flag, equals, value = argument.partition("=")
            if flag.startswith("--"):
                flags[flag.removeprefix("--")] = value if equals else _value(following)
        return cls(arguments=tuple(full), flags=flags)

    def given(self, flag: str) -> bool:
        """Whether the command line has this flag."""
        return flag in self.flags

    def value(self, flag: str) -> str | None:
        """Return the value of a flag, None without the flag. Raises ArgumentError if no value follows it."""
        value = self.flags.get(flag)
        if value is None and self.given(flag):
            raise ArgumentError(None, f"argument --{flag}: expected one argument")
        return value

    @property
    def recipe(self) -> str:
        """The recipe that `--recipe` names, or the default one."""
        given = self.value("recipe")
        return recipes.DEFAULT if given is None else given

    def recipe_name(self, otherwise: str | None = None) -> str:
        """Return the name that the recipe will have: `--name`, or the name of the recipe that is taken.

        `otherwise`: name of the settings that are taken without `--recipe`. Raises UserError for no recipe.
        """
        given = self.value("name")
        if given or (otherwise and not self.given("recipe")):
            return str(given or otherwise)
        return str(recipes.read(self.recipe)["name"])

    def parse(
        self,
        parser: ArgumentParser,
        *,
        base: Mapping[str, Any] | None = None,
        source: str = "the bank",
        remembered: Mapping[str, Factory] | None = None,
    ) -> tuple[Recipe, Namespace]:
        """Return the recipe as given, not yet resolved, and the parser's own options.

        Raises UserError for what does not fit.

        Args:
            parser: has the command's own flags, and `exit_on_error=False`.
            base: a recipe as nested mappings, instead of the one that `--recipe` names.
            source: where `base` is from.
            remembered: see `require_named`.
        """
        try:
            if base is None:
                base, source = recipes.read(self.recipe), f"recipe '{self.recipe}'"
        except ArgumentError as error:
            raise UserError(str(error)) from None
        recipe, options = parse_recipe(parser, self.arguments, base, source)
        classifiers = {"teacher": recipe.teacher, "student": recipe.student}
        require_named(classifiers, self.flags.values(), remembered)
        return recipe, options


def _value(following: str | None) -> str | None:
    """Return what follows a flag if it is a value, as argparse has it: not another flag."""
    return None if following is None or re.match(r"-\D", following) else following


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """The command line with the short flags replaced. Raises UserError for two runtimes."""
    full: list[str] = []
    given = iter(arguments)
    for argument in given:
        flag, equals, value = argument.partition("=")
        if flag == BATCH:
            size = value if equals else next(given, "")
            full += [f"{setting}={size}" for setting in BATCHES]
        elif argument == TRT:
            full.append(f"{RUNTIME}=tensorrt")
        else:
            full.append(SHORT.get(flag, flag) + equals + value)
    runtimes = [argument for argument in full if argument.partition("=")[0] == RUNTIME]
    if TRT in arguments and len(runtimes) > 1:
        raise UserError("--trt is --runtime tensorrt; give one runtime")
    return full


def require_named(
    configs: Mapping[str, ClassifierConfig],
    named: Collection[str | None],
    remembered: Mapping[str, Factory] | None = None,
) -> None:
    """Refuse Python factories that only a file names: the command line must name them, too.

    Args:
        configs: by section.
        named: values given on the command line.
        remembered: the factories of the run that the command goes on with; one of them need not be named
            again as long as its source is what it was.

    Raises:
        UserError: if a factory is not named; the message gives the section and the factory.
    """
    for section, config in configs.items():
        if not is_factory(config.name) or config.name in named:
            continue
        known = (remembered or {}).get(section)
        if known is None or known.name != config.name or not known.files:
            raise UserError(
                f"{section}.name: '{config.name}' is code, which a file alone may not run; "
                f"name it on the command line: --{section}.name {config.name}"
            )
        if change := known.change(Factory.of(config.name)):
            raise UserError(
                f"{section}.name: this run used '{config.name}' from {change}; restore it, or name it on the "
                f"command line to accept it as it is now: --{section}.name {config.name}"
            )
