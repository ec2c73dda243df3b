"""`python -m bench kernels|stages|e2e [--json FILE]`: figures beside baselines run in the same process."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from bench.rows import Row, table, write_csv, write_rows
from engine.cli import main
from engine.errors import UserError


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m bench", description=__doc__, exit_on_error=False)
    commands = parser.add_subcommands(dest="bench")
    for name, (text, add_options, _) in BENCHES.items():
        own = ArgumentParser(description=text, exit_on_error=False)
        own.add_argument("--json", metavar="FILE", default=None, help="write the rows to this file")
        own.add_argument("--csv", metavar="FILE", default=None, help="the same as CSV, with versions")
        add_options(own)
        commands.add_subcommand(name, own, help=text)
    options = parser.parse_args(list(arguments))
    chosen = options[options.bench]
    rows: list[Row] = []
    for row in BENCHES[options.bench][2](chosen):
        rows.append(row)
        _write(chosen, rows)  # each time: what ends the process leaves what is measured
    if not rows:
        _write(chosen, rows)


def _write(options: Namespace, rows: list[Row]) -> None:
    if options.csv:
        write_csv(Path(options.csv), rows)
    if options.json:
        write_rows(Path(options.json), rows)


def _device_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU if any"
    )


def _stage_options(parser: ArgumentParser) -> None:
    parser.add_argument("--stage", default="synthesize,distill", help="comma-separated: synthesize, distill")


def _e2e_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", default="runs/bench-e2e", help="where the runs go")
    parser.add_argument("--seconds", type=float, default=330.0, help="wall-clock of each arm")
    parser.add_argument("--arms", default="", help="comma-separated names instead of all arms")


def _kernels(options: Namespace) -> Iterator[Row]:
    from bench import kernels
    from engine.compute import ComputeConfig, open_accelerator

    device = open_accelerator(ComputeConfig(device=options.device)).device
    return _shown(kernels.rows(device))


def _stages(options: Namespace) -> Iterator[Row]:
    from bench import stages

    names = _names("--stage", options.stage, stages.STAGES)
    return _shown(stages.rows(names))


def _e2e(options: Namespace) -> Iterator[Row]:
    from bench import e2e

    names = _names("--arms", options.arms or ",".join(e2e.ARMS), e2e.ARMS)
    arms: list[e2e.Arm] = []
    given = 0
    for arm in e2e.measure(names, options.seconds, Path(options.out)):
        arms.append(arm)
        rows = e2e.rows(arms)
        yield from rows[given:]
        given = len(rows)
    print(e2e.table(arms))


def _shown(measured: Iterable[Row]) -> Iterator[Row]:
    for index, row in enumerate(measured):
        print(table([row], header=index == 0), flush=True)
        yield row


def _names(option: str, given: str, known: Iterable[str]) -> list[str]:
    names = given.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{option}: no '{unknown[0]}'; there are {', '.join(known)}")
    return names


Bench = tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], Iterator[Row]]]
BENCHES: dict[str, Bench] = {
    "kernels": ("the fused ops beside what they replace", _device_option, _kernels),
    "stages": ("steps of the stages beside the published ones", _stage_options, _stages),
    "e2e": ("the loop's arms, accuracy at equal wall-clock", _e2e_options, _e2e),
}

if __name__ == "__main__":
    sys.exit(main(command))
