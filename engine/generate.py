"""A bank of synthetic images: shards by number, each a function of recipe, seed and number alone."""

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from engine.cli import main
from engine.errors import UserError
from engine.preparing import prepared
from engine.progress import Progress
from engine.short_flags import add_short_flags


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m engine.generate", description=__doc__, exit_on_error=False)
    parser.add_argument("--out", metavar="BANK", help="folder or URL (s3://...) of the bank")
    parser.add_argument("--shards", type=int, metavar="N", default=1, help="shards 0 to N - 1 are made")
    parser.add_argument(
        "--resume", action="store_true", help="continue that bank: sound shards stay, the rest is made"
    )
    add_short_flags(parser)
    recipe, options = prepared(parser, arguments)
    if not options.out:
        raise UserError("--out BANK is missing; give the folder or URL of the bank")
    if options.shards < 1:
        raise UserError(f"--shards is {options.shards}; give 1 or more")
    from engine.shards import generate

    try:
        with Progress() as progress:
            line = generate(recipe, options.out, options.shards, resume=options.resume, progress=progress)
    except KeyboardInterrupt:
        print(f"to continue: the same command with --out {options.out} --resume", file=sys.stderr)
        raise
    print(line)


if __name__ == "__main__":
    sys.exit(main(command))
