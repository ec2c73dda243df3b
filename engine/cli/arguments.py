"""From a command line to a recipe: which recipe, what overrides it, and the short flags spelled out."""

from argparse import ArgumentParser as PlainParser
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from engine import recipes
from engine.config.classifier import ClassifierConfig
from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.models.factory import Factory, is_factory
from engine.recipes.load import parse_recipe

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
    """For --help; `spelled_out` replaces them before the parser reads the command line."""
    for flag, full in SHORT.items():
        parser.add_argument(flag, metavar=flag[2].upper(), help=f"short for {full}")
    parser.add_argument(BATCH, metavar="N or auto", help=f"short for {' and '.join(BATCHES)}")
    parser.add_argument(TRT, action="store_true", help=f"short for {RUNTIME} tensorrt")


def spelled_out(arguments: Sequence[str]) -> list[str]:
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


def parsed(
    parser: ArgumentParser,
    arguments: Sequence[str],
    *,
    base: Mapping[str, Any] | None = None,
    source: str = "the bank",
    remembered: Mapping[str, Factory] | None = None,
) -> tuple[Recipe, Namespace]:
    """The recipe as given, for whichever machine it will run on, and the parser's own options.

    `base`: a recipe as nested mappings, instead of the one that `--recipe` names; `source`: where it is from;
    `remembered`: see `require_named`. Raises UserError for what does not fit.
    """
    if base is None:
        chosen = _chosen_recipe(arguments)
        base, source = recipes.read(chosen), f"recipe '{chosen}'"
    recipe, options = parse_recipe(parser, spelled_out(arguments), base, source)
    require_named({"teacher": recipe.teacher, "student": recipe.student}, arguments, remembered)
    return recipe, options


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
    picker.add_argument("--recipe", default=recipes.DEFAULT)
    return picker.parse_known_args(arguments)[0].recipe


def require_named(
    configs: Mapping[str, ClassifierConfig],
    arguments: Sequence[str],
    remembered: Mapping[str, Factory] | None = None,
) -> None:
    """Refuse Python factories that only a file names: `arguments`, the command line, must name them, too.

    configs: by section. remembered: the factories of the run that the command goes on with; one of them need
    not be named again as long as its source is what it was. Raises UserError that names the section and the
    factory.
    """
    named = {argument.split("=", 1)[-1] for argument in arguments}
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
