"""Verify and merge banks of synthetic images."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from engine.cli.arguments import command_parser, parse
from engine.cli.main import main
from engine.progress import counted
from engine.terminal import add_log_flags

if TYPE_CHECKING:
    from engine.bank.manifest import Manifest

VERIFY = "check every file, count and image of a bank, and exit with code 1 if anything is wrong"
MERGE = "copy the shards of several banks into a new bank"


def command(arguments: Sequence[str]) -> None:
    """Run `python -m engine.bank` with these arguments."""
    parser = command_parser("engine.bank", __doc__)
    commands = parser.add_subcommands(dest="command")
    verify = command_parser("engine.bank verify", VERIFY)
    verify.add_argument("bank", metavar="BANK", help="folder, or URL such as s3://BUCKET/BANK")
    commands.add_subcommand("verify", verify, help=VERIFY)
    merge = command_parser("engine.bank merge", MERGE)
    merge.add_argument(
        "banks",
        metavar="BANK",
        nargs="+",
        help="folders or URLs of banks with the same classes, image size and codec",
    )
    merge.add_argument("--out", metavar="BANK", required=True, help="folder or URL of the new bank")
    merge.add_argument(
        "--resume", action="store_true", help="continue an interrupted merge of the same banks"
    )
    commands.add_subcommand("merge", merge, help=MERGE)
    for each in (parser, verify, merge):
        add_log_flags(each)
    options = parse(parser, arguments)
    {"verify": _verify, "merge": _merge}[options.command](options[options.command])


def _verify(options: Namespace) -> None:
    from engine.bank.reader import read_manifest
    from engine.bank.storage import open_storage
    from engine.bank.verify import verify

    problems = verify(options.bank)
    for problem in problems:
        print(problem)
    if problems:
        raise OSError(f"{options.bank} is not sound: {counted(len(problems), 'problem', 'problems')}")
    manifest = read_manifest(open_storage(options.bank))
    print(f"sound: {_counts(manifest)}")


def _merge(options: Namespace) -> None:
    from engine.bank.merge import merge

    merged = merge(options.banks, options.out, resume=options.resume)
    print(f"{options.out}: {_counts(merged)}")


def _counts(manifest: "Manifest") -> str:
    return (
        f"{counted(len(manifest.shards), 'shard', 'shards')}, {counted(manifest.images, 'image', 'images')}"
    )


if __name__ == "__main__":
    sys.exit(main(command))
