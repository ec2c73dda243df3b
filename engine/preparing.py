"""From a command line to a recipe that runs on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from engine.compute import resolved
from engine.feed.config import settled
from engine.models.config import require_named
from engine.recipe import Recipe, parse
from engine.short_flags import spelled_out
from engine.stages.augment_config import AugmentConfig
from engine.stages.filter_config import FilterConfig


def prepared(
    parser: ArgumentParser, arguments: Sequence[str], *, base: Mapping[str, Any] | None = None
) -> tuple[Recipe, Namespace]:
    """The recipe with every `auto` settled, and the parser's own options; `base`: see `parse`.

    Raises UserError for what does not fit, RuntimeUnavailableError for what cannot run here.
    """
    recipe, options = parse(parser, spelled_out(arguments), base=base)
    require_named({"teacher": recipe.teacher, "student": recipe.student}, arguments)
    compute = resolved(recipe.compute)
    if compute.runtime == "tensorrt":
        from engine.runtime.fallback import runnable

        compute = runnable(compute, recipe.tensorrt, print)
    return replace(recipe, compute=compute, feed=settled(recipe.feed)), options


def has_auto_batch(recipe: Recipe) -> bool:
    """Whether a size of its micro-batches is still to be measured."""
    return "auto" in (recipe.augment.micro_batch, recipe.filter.micro_batch)


def with_default_batches(recipe: Recipe) -> Recipe:
    """`auto` as the default size, for commands that make no images."""
    augment, filter = recipe.augment, recipe.filter
    if augment.micro_batch == "auto":
        augment = replace(augment, micro_batch=AugmentConfig.micro_batch)
    if filter.micro_batch == "auto":
        filter = replace(filter, micro_batch=FilterConfig.micro_batch)
    return replace(recipe, augment=augment, filter=filter)
