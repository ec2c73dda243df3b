"""The exceptions that end a command with one line instead of a traceback."""


class UserError(Exception):
    """A mistake by the user. The message is one line: the setting or file, and the next step. Exit code 2."""


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
