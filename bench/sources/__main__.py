"""Judge synthesized images by networks that took no part in making them.

python -m bench.sources methods --seconds 60 --seeds 0 1 2
python -m bench.sources imagenet --out runs/imagenet.png
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from jsonargparse import ArgumentParser, Namespace

from bench.subcommands import run_one
from engine.cli.main import main
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.config.methods import Name
from engine.config.synthesize import SynthesizeConfig
from engine.distributed import open_accelerator


def command(arguments: Sequence[str]) -> None:
    run_one("bench.sources", str(__doc__).partition("\n\n")[0], COMMANDS, arguments)


def _methods_options(parser: ArgumentParser) -> None:
    names = get_args(Name)
    parser.add_argument("--methods", nargs="+", choices=names, default=list(names), help="methods to compare")
    parser.add_argument("--seconds", type=float, default=60, help="time of each method and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds")
    parser.add_argument("--judge", metavar="DIR", default="runs/judge", help="folder of the trained judge")
    parser.add_argument("--json", metavar="FILE", default=None, help="write the figures to this file")


def _methods(options: Namespace) -> None:
    from bench.sources.judge import trained_judge
    from bench.sources.methods import measure

    accelerator = open_accelerator(resolve_compute(ComputeConfig()))
    judge = trained_judge(Path(options.judge), accelerator)
    print("method         seed  steps  seconds  img/min  teacher   judge    CLIP  distance  in class")
    found = []
    for row in measure(options.methods, options.seeds, options.seconds, judge, accelerator):
        found.append(asdict(row))
        shares = f"{row.teacher:8.1%} {row.judge:7.1%} {row.clip:7.1%}"
        distances = f"{row.distance:9.3f} {row.distance_in_class:9.3f}"
        pace = f"{row.steps:6} {row.seconds:8.0f} {row.images_per_minute:8.0f}"
        print(f"{row.method:14} {row.seed:4} {pace} {shares} {distances}", flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _imagenet_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", default="runs/imagenet.png", help="picture of the images")
    parser.add_argument("--cache", metavar="DIR", default="data/efficientnet", help="folder for the weights")
    parser.add_argument("--images", type=int, default=64, help="images, each of another class")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_class_arguments(SynthesizeConfig, "synthesize")
    parser.set_defaults({f"synthesize.{name}": value for name, value in IMAGENET.items()})


def _imagenet(options: Namespace) -> None:
    from bench.sources.imagenet import measure

    figures = measure(
        Path(options.cache),
        Path(options.out),
        options.synthesize,
        images=options.images,
        seed=options.seed,
        accelerator=open_accelerator(resolve_compute(ComputeConfig())),
        on_batch=lambda count, seconds: print(f"{count} images in {seconds:.0f} s", flush=True),
    )
    print(json.dumps(asdict(figures), indent=1))
    print(f"picture: {options.out}")


IMAGENET = {"method": "deepinversion", "batch_size": 16, "steps": 260, "coarse_steps": 200}
"""Settings with which 64 images of 240 pixels take less than ten minutes on two cores."""

COMMANDS = {
    "methods": ("Compare the methods at equal time on the embedded teacher", _methods_options, _methods),
    "imagenet": ("Invert a real ImageNet network, judged by another", _imagenet_options, _imagenet),
}

if __name__ == "__main__":
    sys.exit(main(command))
