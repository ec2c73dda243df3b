"""`--runtime R`, `--precision P`, `--threads N`, `--batch N` and `--trt`: a recipe's settings, said short."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from engine.errors import UserError
from engine.logs import add_log_flags

RUNTIME = "--compute.runtime"
SHORT = {
    "--runtime": RUNTIME,
    "--precision": "--compute.runtime_precision",
    "--threads": "--compute.threads",
}
TRT = "--trt"
BATCH = "--batch"
BATCHES = ("--augment.micro_batch", "--filter.micro_batch")


def add_short_flags(parser: ArgumentParser) -> None:
    """For --help; `spelled_out` replaces them before the parser reads the command line.

    `--quiet` and `--verbose` come with them.
    """
    for flag, full in SHORT.items():
        parser.add_argument(flag, metavar=flag[2].upper(), help=f"short for {full}")
    parser.add_argument(BATCH, metavar="N or auto", help=f"short for {' and '.join(BATCHES)}")
    parser.add_argument(TRT, action="store_true", help=f"short for {RUNTIME} tensorrt")
    add_log_flags(parser)


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The command line with the short flags replaced. Raises UserError for two runtimes."""
    full: list[str] = []
    given = iter(arguments)
    for argument in given:
        flag, equals, value = argument.partition("=")
        if flag == BATCH:
            size = value if equals else next(given, "")
            full += [f"{setting}={size}" for setting in BATCHES]
        elif argument == TRT:
            full.append(f"{RUNTIME}=tensorrt")
        else:
            full.append(SHORT.get(flag, flag) + equals + value)
    runtimes = [argument for argument in full if argument.partition("=")[0] == RUNTIME]
    if TRT in arguments and len(runtimes) > 1:
        raise UserError("--trt is --runtime tensorrt; give one runtime")
    return full
