"""The exceptions that end a command with one line instead of a traceback."""


class UserError(Exception):
    """A mistake of the user, one line that names the field or file and the next step; exit code 2."""


class NonFiniteError(Exception):
    """NaN or infinity where work cannot go on, one line that names the stage and the step; exit code 1."""


class FailedShardsError(Exception):
    """Shards that were given up, one line that names them; exit code 1."""


class OutOfMemoryError(Exception):
    """Memory too small for the work, one line that names the stage and the remedy; exit code 1."""
