"""How a command ends: what the user can mend is one line and an exit code, a defect is a traceback."""

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence

from engine.errors import NonFiniteError, OutOfMemoryError, UserError
from export.errors import ExportError


def main(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Runs `command` on `arguments` (default: the command line's) and returns the exit code.

    0 success, 1 numbers that are not finite, memory that runs out or files that fail, 2 a mistake of the
    user, 130 interrupted.
    """
    try:
        command(sys.argv[1:] if arguments is None else arguments)
    except (UserError, ExportError) as error:
        return _end(2, f"error: {error}")
    except (NonFiniteError, OutOfMemoryError) as error:
        return _end(1, f"error: {error}")
    except ArgumentError as error:
        return _end(2, f"error: {error}; --help lists the options")
    except OSError as error:
        return _end(1, f"error: {error}")
    except KeyboardInterrupt:
        return _end(130, "interrupted")
    return 0


def _end(code: int, message: str) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return code
