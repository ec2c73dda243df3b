"""Whether a bank goes on with the settings that it was begun with."""

import json
from collections.abc import Mapping
from typing import Any

from engine.bank.manifest import Header
from engine.errors import UserError

OTHER_COMMAND = "one of engine.run and engine.generate made it, and this is the other"
"""The only difference that is not among the settings."""


def require_same_settings(url: str, stored: Header, new: Header) -> None:
    if stored.settings_sha256 != new.settings_sha256:
        recipe, facts = (json.loads(json.dumps(part)) for part in (new.recipe, new.facts))
        difference = first_difference(stored.facts, facts) or first_difference(stored.recipe, recipe)
        raise UserError(
            f"--resume: {url} was made with other settings: {difference or OTHER_COMMAND};"
            " restore that file or setting, or give another bank"
        )
    for name in ("class_names", "image_size", "channels", "codec", "quality"):
        before, after = getattr(stored, name), getattr(new, name)
        if before != after:
            raise UserError(
                f"--resume: {url} was made with another {name} ({before!r} -> {after!r}); give another bank"
            )


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """`key: old value -> new value` of the first setting that differs, None where all are equal."""
    before, after = _flat(old), _flat(new)
    for key in before | after:
        if before.get(key) != after.get(key):
            return f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
    return None


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
