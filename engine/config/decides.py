"""Which results a setting affects, declared as metadata of its field.

Code that compares settings or copies them to another run reads the declarations. A field without one has the
effects of its section.
"""

from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

Effect = Literal["images", "student", "numbers", "execution"]
"""images: the images of a bank; its settings hash covers the value, which must stay the same to continue it.
student: the training on a bank and the measurement of the student.
numbers: how a computation is rounded, on any machine.
execution: how and where to compute, which may differ between machines."""
KEY = "decides"


def decides(*effects: Effect) -> dict[str, frozenset[Effect]]:
    """Return the metadata of a field that has these effects."""
    return {KEY: frozenset(effects)}


def sections(recipe: type, effect: Effect) -> tuple[str, ...]:
    """Return the names of the recipe's fields, most of them sections, that have `effect`."""
    return tuple(field.name for field in fields(recipe) if effect in _effects(field, frozenset()))


def settings(recipe: type) -> dict[str, frozenset[Effect]]:
    """Return the effects of every setting by dotted key."""
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
