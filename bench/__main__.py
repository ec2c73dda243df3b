"""Compare the engine with baselines, in this process or in processes that it starts.

Two commands have no baseline: `smoke` checks the code that needs a GPU in a minute, and `full-size` writes
random networks for `python -m export`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from bench.rows import Row, table, write_csv, write_rows
from bench.subcommands import add
from engine.cli.arguments import command_parser, parse
from engine.cli.main import main
from engine.errors import UserError


def command(arguments: Sequence[str]) -> None:
    parser = command_parser("bench", __doc__)
    commands = parser.add_subcommands(dest="bench")
    for name, (text, add_options, _) in BENCHES.items():
        add(commands, "bench", name, text, _row_options, add_options)
    for name, (text, add_options, _) in WITHOUT_ROWS.items():
        add(commands, "bench", name, text, add_options)
    options = parse(parser, arguments)
    chosen = options[options.bench]
    if options.bench in WITHOUT_ROWS:
        WITHOUT_ROWS[options.bench][2](chosen)
        return
    rows: list[Row] = []
    for row in BENCHES[options.bench][2](chosen):
        rows.append(row)
        _write(chosen, rows)  # after every row, so that a crash loses none
    if not rows:
        _write(chosen, rows)


def _full_size(options: Namespace) -> None:
    from bench import full_size

    for line in full_size.write(Path(options.out)):
        print(line, flush=True)


def _smoke(options: Namespace) -> None:
    from bench import smoke
    from engine.cli.resolve import resolve_compute
    from engine.config.compute import ComputeConfig
    from engine.distributed import open_accelerator

    names = _names("--checks", options.checks, smoke.CHECKS) if options.checks else list(smoke.CHECKS)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    config = ComputeConfig(device=options.device, runtime="torch")
    probe = smoke.Probe(accelerator=open_accelerator(resolve_compute(config)), out=out)
    failed = smoke.run({name: smoke.CHECKS[name] for name in names}, probe, seconds=options.seconds)
    if failed:
        raise UserError(f"smoke checks failed: {', '.join(failed)}; see the traces in {out}")


def _write(options: Namespace, rows: list[Row]) -> None:
    if options.csv:
        write_csv(Path(options.csv), rows)
    if options.json:
        write_rows(Path(options.json), rows)


def _row_options(parser: ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", default=None, help="write the rows to this JSON file")
    parser.add_argument(
        "--csv", metavar="FILE", default=None, help="write the rows and versions to this CSV file"
    )


def _device_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto uses the GPU if there is one"
    )


def _kernel_options(parser: ArgumentParser) -> None:
    _device_option(parser)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds to measure each call")
    parser.add_argument(
        "--no-inductor", action="store_true", help="skip inductor, which takes long to compile"
    )


def _stage_options(parser: ArgumentParser) -> None:
    known = "comma-separated: synthesize, methods (each of synthesize), augment, filter, distill, teacher"
    parser.add_argument("--stage", default="synthesize,distill", help=known)
    _device_option(parser)
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds to measure each call")
    parser.add_argument("--batch", help="batch size of synthesize, distill, teacher (default: as published)")


def _feed_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--images", type=int, default=1_000_000, help="images in the largest bank, 5.1 kB each on disk"
    )


def _production_options(parser: ArgumentParser) -> None:
    _device_option(parser)
    parser.add_argument("--stage", default="augment,filter", help="comma-separated stages: augment, filter")
    parser.add_argument("--prior", default="sd-1.5", help="size of the networks: sd-1.5 or unet-16m")
    parser.add_argument("--batches", default="16,1,64", help="comma-separated batch sizes")
    parser.add_argument("--steps", default="4,1,8", help="comma-separated numbers of solver steps")
    parser.add_argument(
        "--ways", default="eager,tensorrt", help="comma-separated: eager, compiled (takes minutes), tensorrt"
    )
    parser.add_argument("--baseline", choices=["fp16", "fp32"], default="fp16", help="dtype of the baselines")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="time limit of each opening and comparison"
    )


def _smoke_options(parser: ArgumentParser) -> None:
    _device_option(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for traces and profiles")
    parser.add_argument("--checks", default="", help="comma-separated checks (default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of each check")


def _full_size_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to; takes 3 GB")


def _e2e_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", default="runs/bench-e2e", help="folder for the runs")
    parser.add_argument(
        "--seconds", type=float, default=330.0, help="wall-clock seconds of each arm with each seed"
    )
    parser.add_argument("--seeds", default="0", help="comma-separated seeds")
    parser.add_argument(
        "--arms", default="", help="comma-separated arms (default: fast-dfkd,csd,ours,prior-free,noise,prior)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep what is finished in --out and measure the rest"
    )


def _kernels(options: Namespace) -> Iterator[Row]:
    from bench import kernels
    from engine.cli.resolve import resolve_compute
    from engine.config.compute import ComputeConfig
    from engine.distributed import open_accelerator

    device = open_accelerator(resolve_compute(ComputeConfig(device=options.device))).device
    return _shown(kernels.rows(device, seconds=options.seconds, inductor=not options.no_inductor))


def _stages(options: Namespace) -> Iterator[Row]:
    from bench import stages
    from engine.config.compute import ComputeConfig

    names = _names("--stage", options.stage, stages.STAGES)
    batch = options.batch and _numbers("--batch", options.batch)[0]
    compute = ComputeConfig(device=options.device)
    return _shown(stages.rows(names, compute, seconds=options.seconds, batch=batch))


def _feed(options: Namespace) -> Iterator[Row]:
    from bench import feed

    return _shown(feed.rows(options.images))


def _scale(options: Namespace) -> Iterator[Row]:
    del options
    from bench import scale

    return _shown(scale.rows())


def _startup(options: Namespace) -> Iterator[Row]:
    del options
    from bench import startup

    return _shown(startup.rows())


def _production(options: Namespace) -> Iterator[Row]:
    from bench import production
    from engine.config.compute import ComputeConfig
    from export.spec import DTYPES

    stages = _names("--stage", options.stage, production.JOBS)
    wanted = production.Wanted(
        prior=_names("--prior", options.prior, production.PRIORS)[0],
        batches=_numbers("--batches", options.batches),
        steps=_numbers("--steps", options.steps),
        ways=_names("--ways", options.ways, production.WAYS),
        dtype=DTYPES[options.baseline],
    )
    config = ComputeConfig(device=options.device, runtime="torch")
    return _shown(production.rows(stages, wanted, config, seconds=options.seconds))


def _tensorrt(options: Namespace) -> Iterator[Row]:
    del options
    from bench import tensorrt

    return _shown(tensorrt.rows())


def _e2e(options: Namespace) -> Iterator[Row]:
    from bench.e2e import report
    from bench.e2e.arms import ARMS, DEFAULT_ARMS
    from bench.e2e.measure import measure

    names = _names("--arms", options.arms or ",".join(DEFAULT_ARMS), ARMS)
    seeds, out = _numbers("--seeds", options.seeds, least=0), Path(options.out)
    if not 0 < options.seconds < float("inf"):
        raise UserError(f"--seconds is {options.seconds:g}; give a number above 0")
    results = []
    for result in measure(names, seeds, options.seconds, out, resume=options.resume):
        results.append(result)
        print(
            f"{result.arm}, seed {result.seed}: {result.top1:.2%} in {result.wall_seconds:.0f} s", flush=True
        )
    print(report.table(results), report.curves(results), sep="\n\n")
    report.save_picture(results, out / "curves.png")
    yield from report.rows(results)


def _shown(measured: Iterable[Row]) -> Iterator[Row]:
    for index, row in enumerate(measured):
        print(table([row], header=index == 0), flush=True)
        yield row


def _names(option: str, given: str, known: Iterable[str]) -> list[str]:
    names = list(dict.fromkeys(given.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{option} has '{unknown[0]}'; choose from {', '.join(known)}")
    return names


def _numbers(option: str, given: str, *, least: int = 1) -> list[int]:
    try:
        numbers = [int(number) for number in given.split(",")]
    except ValueError:
        numbers = [least - 1]
    if min(numbers) < least:
        raise UserError(f"{option} is '{given}'; use comma-separated integers of at least {least}")
    return list(dict.fromkeys(numbers))


Bench = tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], Iterator[Row]]]
BENCHES: dict[str, Bench] = {
    "kernels": ("fused ops against the code that they replace", _kernel_options, _kernels),
    "stages": ("the stages against published code", _stage_options, _stages),
    "feed": ("the feed: speed, waiting time and memory", _feed_options, _feed),
    "scale": ("scaling: workers, Ray, shards, the cost plan, student processes", lambda _: None, _scale),
    "startup": ("start-up time of --help and of an up-to-date export", lambda _: None, _startup),
    "production": ("augment and filter at production size, random weights", _production_options, _production),
    "tensorrt": ("TensorRT engines on this GPU: build, load, values, speed", lambda _: None, _tensorrt),
    "e2e": ("students of ours and of published loops at equal wall-clock time", _e2e_options, _e2e),
}
Command = tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], None]]
WITHOUT_ROWS: dict[str, Command] = {
    "smoke": ("one-minute checks of the code that needs a GPU", _smoke_options, _smoke),
    "full-size": ("write random networks of production size", _full_size_options, _full_size),
}

if __name__ == "__main__":
    sys.exit(main(command))
