"""What stands in a merged bank's header in the place of a recipe: those of the banks it was merged from."""

from collections.abc import Sequence
from typing import Any

MERGED = "merged"


def merged_recipe(recipes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {MERGED: by_bank(recipes)}


def by_bank(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One where all are equal."""
    if all(value == values[0] for value in values):
        return values[0]
    return {f"bank {place}": value for place, value in enumerate(values, 1)}


def recipes_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipes that made a bank's shards, by what stands in its header; of merged banks, too, in order."""
    if MERGED not in recipe:
        return [recipe]
    inner = recipe[MERGED]
    parts = list(inner.values()) if all(name.startswith("bank ") for name in inner) else [inner]
    return [each for part in parts for each in recipes_of(part)]
