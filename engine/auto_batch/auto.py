"""Whether micro-batches are still `auto`, and their defaults if nothing is measured."""

from dataclasses import replace

from engine.recipe import Recipe
from engine.stages.augment_config import AugmentConfig
from engine.stages.filter_config import FilterConfig


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
