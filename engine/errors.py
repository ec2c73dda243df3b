"""The exceptions that end a command with a message instead of a traceback."""

from collections.abc import Iterable


class UserError(Exception):
    """A mistake by the user. The message is one line: the setting or file, and the next step. Exit code 2."""


class SettingsError(UserError):
    """Wrong settings. `faults` has one line for each, the setting first, then the next step. Exit code 2."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(" ".join(fault.split()) for fault in faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return self.faults[0]
        return "\n  - ".join((f"{len(self.faults)} settings are wrong:", *self.faults))


class NonFiniteError(Exception):
    """NaN or infinity in a result. The message is one line: the stage and the step. Exit code 1."""


class FailedShardsError(Exception):
    """Shards that failed for good. The message is one line that names them. Exit code 1."""


class OutOfMemoryError(Exception):
    """Too little memory. The message is one line: the stage and the remedy. Exit code 1."""


def more_precision(precision: str, key: str, *, otherwise: str) -> str:
    """Return the remedy for non-finite values: a higher precision for `key`, or `otherwise` in fp32."""
    safer = {"fp16": "bf16 or fp32", "bf16": "fp32"}.get(precision)
    return f"use --{key} {safer}" if safer else otherwise
