"""What a setting decides, said at its field and read by whatever compares or carries over settings.

A field without `decides` has the effects of its section.
"""

from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

Effect = Literal["images", "student", "numbers", "execution"]
"""images: a bank is continued only with the same value, which its settings hash covers.
student: training on a bank and measuring the student.
numbers: how the same computation is rounded, on any machine.
execution: how and where to compute, which may differ from machine to machine."""
KEY = "decides"


def decides(*effects: Effect) -> dict[str, frozenset[Effect]]:
    """Return the `metadata` of a field that decides `effects`."""
    return {KEY: frozenset(effects)}


def sections(recipe: type, effect: Effect) -> tuple[str, ...]:
    """Return the names of the recipe's fields, most of them sections, that decide `effect` as a whole."""
    return tuple(field.name for field in fields(recipe) if effect in _effects(field, frozenset()))


def settings(recipe: type) -> dict[str, frozenset[Effect]]:
    """Return the effects of every setting, by its dotted key."""
    return dict(_settings(recipe, "", frozenset()))


def _settings(
    owner: type, prefix: str, inherited: frozenset[Effect]
) -> Iterator[tuple[str, frozenset[Effect]]]:
    kinds = get_type_hints(owner)
    for field in fields(owner):
        kind, effects = kinds[field.name], _effects(field, inherited)
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _settings(kind, f"{prefix}{field.name}.", effects)
        else:
            yield f"{prefix}{field.name}", effects


def _effects(field: Field[Any], inherited: frozenset[Effect]) -> frozenset[Effect]:
    found: frozenset[Effect] = field.metadata.get(KEY, inherited)
    return found
