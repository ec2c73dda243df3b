"""The exceptions that end a command with one line instead of a traceback."""


class UserError(Exception):
    """A mistake of the user, one line that names the field or file and the next step; exit code 2."""


class NonFiniteError(Exception):
    """NaN or infinity where work cannot go on, one line that names the stage and the step; exit code 1."""


class FailedShardsError(Exception):
    """Shards that were given up, one line that names them; exit code 1."""


class OutOfMemoryError(Exception):
    """Memory too small for the work, one line that names the stage and the remedy; exit code 1."""


def more_precision(precision: str, key: str, *, otherwise: str) -> str:
    """What helps against values that are not finite: the next precision of `key`, or `otherwise` in fp32."""
    safer = {"fp16": "bf16 or fp32", "bf16": "fp32"}.get(precision)
    return f"take --{key} {safer}" if safer else otherwise
