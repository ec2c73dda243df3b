"""Settings that are checked when their object is created, with all of their faults in one error.

A fault is a line that begins with the key of a wrong setting, such as `augment.steps`. A contradiction also
names the other settings that take part in it, so it can be left out if one of them is wrong by itself.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.errors import SettingsError

Config = TypeVar("Config")


@dataclass(frozen=True)
class Checked:
    """The base of a configuration. Creating one raises SettingsError for settings that are not allowed."""

    def __post_init__(self) -> None:
        if found := independent(self.faults(), self.contradictions()):
            raise SettingsError(found)

    def faults(self) -> Iterator[str]:
        """Yield the settings that are wrong whatever the others are."""
        yield from ()

    def contradictions(self) -> Iterator[str]:
        """Yield the settings that do not fit one another. Must not fail for settings that have faults."""
        yield from ()


def independent(
    faults: Iterable[str], contradictions: Iterable[str], wrong: Collection[str] = ()
) -> list[str]:
    """Return the faults and the contradictions, without those that name a setting in `wrong`.

    Contradictions that name a setting with a fault are left out, too: they may be its consequence.
    """
    kept = [fault for fault in faults if set(wrong).isdisjoint(_keys(fault))]
    known = {*wrong, *(_keys(fault)[0] for fault in kept)}
    return [*kept, *(each for each in contradictions if known.isdisjoint(_keys(each)))]


def unchecked(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Return an object with these values and the defaults, whose checks have not run."""
    config = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(config, name, value)
    return config


def _keys(line: str) -> list[str]:
    """Return the words that may be keys."""
    return re.findall(r"\w+(?:\.\w+)*", line)
