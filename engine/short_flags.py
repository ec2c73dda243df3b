"""`--runtime R`, `--precision P`, `--threads N` and `--trt`: settings of a recipe, said short."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from engine.errors import UserError

RUNTIME = "--compute.runtime"
SHORT = {
    "--runtime": RUNTIME,
    "--precision": "--compute.runtime_precision",
    "--threads": "--compute.threads",
}
TRT = "--trt"


def add_short_flags(parser: ArgumentParser) -> None:
    """For --help; `spelled_out` replaces them before the parser reads the command line."""
    for flag, full in SHORT.items():
        parser.add_argument(flag, metavar=flag[2].upper(), help=f"short for {full}")
    parser.add_argument(TRT, action="store_true", help=f"short for {RUNTIME} tensorrt")


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The command line with the short flags replaced. Raises UserError for two runtimes."""
    full = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        full.append(f"{RUNTIME}=tensorrt" if argument == TRT else SHORT.get(flag, flag) + equals + value)
    runtimes = [argument for argument in full if argument.partition("=")[0] == RUNTIME]
    if TRT in arguments and len(runtimes) > 1:
        raise UserError("--trt is --runtime tensorrt; give one runtime")
    return full
