"""From a command line to a recipe that runs on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from engine.auto_batch.auto import has_auto_batch
from engine.compute import resolved
from engine.feed.config import settled
from engine.models.config import require_named
from engine.models.factory import Factory
from engine.recipe import Recipe, parse
from engine.short_flags import spelled_out


def prepared(
    parser: ArgumentParser,
    arguments: Sequence[str],
    *,
    base: Mapping[str, Any] | None = None,
    source: str = "the bank",
    remembered: Mapping[str, Factory] | None = None,
) -> tuple[Recipe, Namespace]:
    """The recipe with every `auto` settled, and the parser's own options; `base` and `source`: see `parse`;
    `remembered`: see `require_named`.

    Raises UserError for what does not fit, RuntimeUnavailableError for what cannot run here.
    """
    recipe, options = parsed(parser, arguments, base=base, source=source, remembered=remembered)
    return settled_here(recipe), options


def parsed(
    parser: ArgumentParser,
    arguments: Sequence[str],
    *,
    base: Mapping[str, Any] | None = None,
    source: str = "the bank",
    remembered: Mapping[str, Factory] | None = None,
) -> tuple[Recipe, Namespace]:
    """The recipe as given, for whichever machine it will run on; as `prepared` otherwise."""
    recipe, options = parse(parser, spelled_out(arguments), base=base, source=source)
    require_named({"teacher": recipe.teacher, "student": recipe.student}, arguments, remembered)
    return recipe, options


def settled_here(recipe: Recipe) -> Recipe:
    """With what every `auto` is on this machine. Raises as `prepared` does."""
    compute = resolved(recipe.compute)
    if compute.runtime == "tensorrt":
        from engine.runtime.fallback import runnable

        compute = runnable(compute, recipe.tensorrt, print)
    return replace(recipe, compute=compute, feed=settled(recipe.feed))


def settled_to_make(recipe: Recipe) -> Recipe:
    """As `settled_here`, for commands that make images: micro-batches are measured where they are `auto`."""
    settled_recipe = settled_here(recipe)
    if not has_auto_batch(settled_recipe):
        return settled_recipe
    from engine.auto_batch.settle import settled_batches

    return settled_batches(settled_recipe)
