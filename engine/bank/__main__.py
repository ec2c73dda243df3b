"""Verify and merge banks of synthetic images."""

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace

from engine.cli.main import main
from engine.terminal import add_log_flags

VERIFY = "check every file, count and image of a bank; exit with code 1 if anything is wrong"
MERGE = "copy the shards of several banks into a new bank"


def command(arguments: Sequence[str]) -> None:
    """Run `python -m engine.bank` with these arguments."""
    parser = ArgumentParser(prog="python -m engine.bank", description=__doc__, exit_on_error=False)
    commands = parser.add_subcommands(dest="command")
    verify = ArgumentParser(description=VERIFY, exit_on_error=False)
    verify.add_argument("bank", metavar="BANK", help="a folder, or a URL such as s3://BUCKET/BANK")
    commands.add_subcommand("verify", verify, help=VERIFY)
    merge = ArgumentParser(description=MERGE, exit_on_error=False)
    merge.add_argument(
        "banks", metavar="BANK", nargs="+", help="banks with the same classes, image size and codec"
    )
    merge.add_argument("--out", metavar="BANK", required=True, help="the new bank")
    merge.add_argument(
        "--resume", action="store_true", help="continue an interrupted merge of the same banks"
    )
    commands.add_subcommand("merge", merge, help=MERGE)
    for each in (parser, verify, merge):
        add_log_flags(each)
    options = parser.parse_args(list(arguments))
    {"verify": _verify, "merge": _merge}[options.command](options[options.command])


def _verify(options: Namespace) -> None:
    from engine.bank.reader import read_manifest
    from engine.bank.storage import open_storage
    from engine.bank.verify import verify

    problems = verify(options.bank)
    for problem in problems:
        print(problem)
    if problems:
        raise OSError(f"{options.bank} is not sound: {len(problems)} problems")
    manifest = read_manifest(open_storage(options.bank))
    print(f"sound: {len(manifest.shards)} shards, {manifest.images} images")


def _merge(options: Namespace) -> None:
    from engine.bank.merge import merge

    merged = merge(options.banks, options.out, resume=options.resume)
    print(f"{options.out}: {len(merged.shards)} shards, {merged.images} images")


if __name__ == "__main__":
    sys.exit(main(command))
