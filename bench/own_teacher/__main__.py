"""Make the data sets, train teachers and students on them, and distill students on noise.

The glyph benchmark:

    D=data/glyphs T=bench.own_teacher.glyph_cnn:glyph_cnn S=engine:wrn_16_1
    python -m bench.own_teacher glyphs --out $D
    python -m bench.own_teacher train --data $D --network $T --out $D/w.pth --epochs 7 --bf16
    python -m bench.own_teacher train --data $D --network $S --out $D/real.pth --seconds 480
    python -m bench.own_teacher noise --data $D --network $S --out $D/noise.pth --seconds 480 \\
        --teacher $T --weights $D/w.pth
    python -m engine.run --teacher $T --teacher.weights $D/w.pth --evaluate.data $D/test --budget 8m \\
        --distill.flip false --out runs/glyphs

The emoji benchmark:

    D=data/emoji T=timm:resnet10t S=timm:regnetx_002
    python -m bench.own_teacher emoji --out $D
    python -m bench.own_teacher train --data $D --augment --batch 64 --network $T --out $D/w.pth \\
        --epochs 16 --bf16
    python -m bench.own_teacher train --data $D --augment --batch 64 --network $S --out $D/real.pth \\
        --seconds 1200
    python -m bench.own_teacher noise --data $D --batch 64 --network $S --out $D/noise.pth --seconds 1200 \\
        --teacher $T --weights $D/w.pth
    python -m engine.run --teacher $T --teacher.weights $D/w.pth --teacher.image_size 64 --student.name $S \\
        --evaluate.data $D/test --budget 20m --out runs/emoji
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from bench.subcommands import run_one
from engine.cli.main import main
from engine.errors import UserError

if TYPE_CHECKING:
    from bench.own_teacher.image_folder import Images
    from bench.own_teacher.training import Batches, Normalized


def command(arguments: Sequence[str]) -> None:
    run_one("bench.own_teacher", str(__doc__).partition("\n\n")[0], COMMANDS, arguments)


def _data_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for train/ and test/")
    parser.add_argument("--cache", metavar="DIR", default="data/own-teacher", help="folder for the packages")


def _glyph_options(parser: ArgumentParser) -> None:
    _data_options(parser)
    parser.add_argument("--train", type=int, default=25_000, help="training images")
    parser.add_argument("--test", type=int, default=5_000, help="test images")
    parser.add_argument("--seed", type=int, default=0, help="chooses the split and every image")


def _emoji_options(parser: ArgumentParser) -> None:
    _data_options(parser)
    parser.add_argument("--held-out", default="twitter", help="vendor whose emoji are the test images")


def _fit_options(parser: ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", required=True, help="folder with train/ and test/")
    parser.add_argument(
        "--network", required=True, help="engine:NAME, timm:NAME, torchvision:NAME or package.module:factory"
    )
    parser.add_argument("--out", metavar="FILE", required=True, help="checkpoint to write")
    parser.add_argument("--epochs", type=float, default=None, help="budget in epochs of the training images")
    parser.add_argument("--steps", type=int, default=None, help="budget in steps")
    parser.add_argument("--seconds", type=float, default=None, help="budget in seconds")
    parser.add_argument("--batch", type=int, default=128, help="images in a step")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--bf16", action="store_true", help="train under bf16 autocast")
    parser.add_argument("--seed", type=int, default=0, help="chooses weights and batches")


def _train_options(parser: ArgumentParser) -> None:
    _fit_options(parser)
    parser.add_argument("--augment", action="store_true", help="shift, scale, mirror and recolour (RGB only)")


def _noise_options(parser: ArgumentParser) -> None:
    _fit_options(parser)
    parser.add_argument("--teacher", required=True, help="the teacher, in the form of --network")
    parser.add_argument("--weights", metavar="FILE", required=True, help="the teacher's checkpoint")
    parser.add_argument("--kind", choices=["uniform", "smooth", "both"], default="both", help="the noise")
    parser.add_argument("--temperature", type=float, default=20.0, help="of both softmaxes")


def _glyphs(options: Namespace) -> None:
    from bench.own_teacher import glyphs

    for line in glyphs.make(
        Path(options.out), Path(options.cache), train=options.train, test=options.test, seed=options.seed
    ):
        print(line, flush=True)


def _emoji(options: Namespace) -> None:
    from bench.own_teacher import emoji

    for line in emoji.make(Path(options.out), Path(options.cache), held_out=options.held_out):
        print(line, flush=True)


def _train(options: Namespace) -> None:
    from bench.own_teacher import batches, image_folder

    images = image_folder.read(Path(options.data), "train")
    if options.augment and images.pixels.shape[1] != 3:
        raise UserError(f"--augment is for RGB images; those in {options.data} are grey")
    model = _model("network", options.network, images, options.seed)
    labeled = batches.labeled(images, options.batch, seed=options.seed, augment=options.augment)
    _fit(options, model, labeled, images)


def _noise(options: Namespace) -> None:
    from bench.own_teacher import batches, image_folder

    images = image_folder.read(Path(options.data), "train")  # for their number, size and classes alone
    teacher = _model("teacher", options.teacher, images, options.seed, weights=options.weights)
    model = _model("network", options.network, images, options.seed)
    model.mean, model.std = teacher.mean, teacher.std
    shape = (options.batch, *images.pixels.shape[1:])
    noise = batches.noise(options.kind, shape, teacher, seed=options.seed, bf16=options.bf16)
    _fit(options, model, noise, images)


def _model(
    section: str, name: str, images: "Images", seed: int, *, weights: str | None = None
) -> "Normalized":
    """Build a network, with its own mean and std if it has them, or else those of the training images."""
    import torch

    from bench.own_teacher.training import Normalized
    from engine.config.classifier import ClassifierConfig
    from engine.models.loading import build_classifier, load_classifier

    channels = images.pixels.shape[1]
    config = ClassifierConfig(
        name=name,
        weights=weights,
        num_classes=len(images.classes),
        in_channels=channels,
        image_size=images.pixels.shape[-1],
        mean=(0.5,),  # the adapter is not used: the loop normalizes
        std=(0.5,),
    )
    torch.manual_seed(seed)
    network = (load_classifier if weights else build_classifier)(config, section).network
    own = getattr(network, "pretrained_cfg", {})
    if len(own.get("mean", ())) == channels:
        return Normalized(network, tuple(own["mean"]), tuple(own["std"]))
    return Normalized(network, *images.statistics())


def _fit(options: Namespace, model: "Normalized", batches: "Batches", images: "Images") -> None:
    import torch

    from bench.own_teacher import image_folder, training

    budgets = [name for name in ("epochs", "steps", "seconds") if options[name] is not None]
    if len(budgets) != 1 or options[budgets[0]] <= 0:
        raise UserError("give one of --epochs, --steps and --seconds, above 0")
    if not 2 <= options.batch <= len(images.labels):
        raise UserError(f"--batch is {options.batch}; use 2 to {len(images.labels)}, the training images")
    torch.set_num_threads(options.threads)
    out, per_epoch = Path(options.out), len(images.labels) // options.batch
    out.parent.mkdir(parents=True, exist_ok=True)
    steps = options.steps if options.epochs is None else max(1, round(options.epochs * per_epoch))
    fit = training.Training(
        model=model,
        batches=batches,
        steps=steps,
        seconds=options.seconds,
        steps_per_epoch=per_epoch,
        temperature=options.get("temperature", 1.0),
        bf16=options.bf16,
        partial=out.with_suffix(".partial"),
        settings={
            name: value
            for name, value in options.as_dict().items()
            if name not in ("threads", "quiet", "verbose")
        },
    )
    fit.run()
    torch.save(fit.state(), out)
    result: dict[str, Any] = {
        "out": str(out),
        "command": options.as_dict(),
        "steps": fit.step,
        "seconds": round(fit.spent, 1),
        "parameters": sum(weight.numel() for weight in model.network.parameters()),
        "train_top1": training.top1(model, images),
        "test_top1": training.top1(model, image_folder.read(Path(options.data), "test")),
    }
    out.with_suffix(".json").write_text(json.dumps(result, indent=1, default=str), encoding="utf-8")
    fit.partial.unlink(missing_ok=True)
    print(f"{out}: test {result['test_top1']:.4f}, train {result['train_top1']:.4f}", flush=True)


COMMANDS: dict[str, tuple[str, Any, Any]] = {
    "glyphs": ("ten letters in Debian's fonts: grey, 28 pixels", _glyph_options, _glyphs),
    "emoji": ("emoji of four vendors by category: RGB, 64 pixels", _emoji_options, _emoji),
    "train": ("train a network on the images", _train_options, _train),
    "noise": ("distill a teacher into a student on random noise", _noise_options, _noise),
}

if __name__ == "__main__":
    sys.exit(main(command))
