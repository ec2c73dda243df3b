"""`python -m bench e2e [--json FILE]`: what the parts of the loop are worth, at equal wall-clock."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from engine.cli import main
from engine.errors import UserError


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m bench", description=__doc__, exit_on_error=False)
    parser.add_argument("bench", choices=["e2e"], help="e2e: the loop's arms, accuracy at equal wall-clock")
    parser.add_argument("--json", metavar="FILE", default=None, help="write the rows to this file")
    parser.add_argument("--out", metavar="DIR", default="runs/bench-e2e", help="where the runs go")
    parser.add_argument("--seconds", type=float, default=330.0, help="wall-clock of each arm")
    parser.add_argument("--arms", default="", help="comma-separated names instead of all arms")
    options = parser.parse_args(list(arguments))
    from bench import e2e
    from bench.rows import write_rows

    names = options.arms.split(",") if options.arms else list(e2e.ARMS)
    unknown = [name for name in names if name not in e2e.ARMS]
    if unknown:
        raise UserError(f"--arms: no arm '{unknown[0]}'; the arms are {', '.join(e2e.ARMS)}")
    summaries = e2e.measure(names, options.seconds, Path(options.out))
    print(e2e.table(summaries))
    if options.json:
        write_rows(Path(options.json), e2e.rows(summaries))


if __name__ == "__main__":
    sys.exit(main(command))
