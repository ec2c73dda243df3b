"""Exports the frozen networks of a recipe for a runtime: ONNX graphs, engines, and the proof parity.json."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser

from engine.auto_batch.auto import with_default_batches
from engine.compute import settled
from engine.errors import UserError
from engine.exporting.report import record
from engine.exporting.stamp import Exported, Stamp
from engine.exporting.table import report_table
from engine.models.config import require_named
from engine.models.pipeline_folder import TEXT_TO_IMAGE, PipelineFolder
from engine.recipe import Recipe, parse
from engine.short_flags import add_short_flags, spelled_out

REPORT = "parity.json"
IMAGE_ENCODER = "image_encoder"
GROUPS = {
    "teacher": ("teacher",),
    "clip": ("clip", IMAGE_ENCODER),
    "unet": ("unet",),
    "vae": ("vae_encoder", "vae_decoder"),
    "student": ("student",),
}
DEFAULT = "teacher,clip,unet,vae"


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m export", description=__doc__, exit_on_error=False)
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the graphs, engines and parity.json (required)"
    )
    parser.add_argument(
        "--network",
        metavar="NAMES",
        default=DEFAULT,
        help=f"comma-separated: {', '.join(GROUPS)}; clip is the filter's and an image-variation prior's",
    )
    parser.add_argument("--run", metavar="DIR", help="for --network student: the folder of a finished run")
    parser.add_argument("--images", metavar="DIR", help="real images for the proof")
    add_short_flags(parser)
    recipe, options = parse(parser, spelled_out(arguments))
    recipe = with_default_batches(recipe)
    require_named({"teacher": recipe.teacher, "student": recipe.student}, arguments)
    if not options.out:
        raise UserError("--out is missing; give the folder that shall hold the engines")
    names = _networks(options.network, recipe)
    student = str(Path(options.run, "student.safetensors")) if options.run else None
    folder = Path(options.out)
    recipe = replace(recipe, compute=replace(recipe.compute, engines=str(folder)))
    stamp = Stamp.of(recipe, names, student, options.images)
    exported = stamp.found(folder)
    if exported:
        print(f"{folder} is up to date: neither the networks nor the settings have changed")
        record(folder / REPORT, exported, _say)  # another recipe's may stand there now
    else:
        exported = _export(recipe, names, student, options.images, folder)
        stamp.put_on(folder, exported)
    print(report_table(exported.proofs))


def _networks(given: str, recipe: Recipe) -> list[str]:
    groups = [name.strip() for name in given.split(",")]
    unknown = [name for name in groups if name not in GROUPS]
    if unknown:
        raise UserError(f"--network: no '{unknown[0]}'; there are {', '.join(GROUPS)}")
    names = [name for group in groups for name in GROUPS[group]]
    return [name for name in names if name != IMAGE_ENCODER or _has_image_encoder(recipe.augment.prior)]


def _has_image_encoder(prior: str) -> bool:
    return bool(prior) and PipelineFolder.open(prior).class_name not in TEXT_TO_IMAGE


def _export(
    recipe: Recipe, names: list[str], student: str | None, images: str | None, folder: Path
) -> Exported:
    """Each network's proof is in the report as soon as it is made."""
    import torch

    from engine.exporting.images import RealInputs, read_images
    from engine.exporting.networks import Networks
    from engine.exporting.proof import ROWS, prove
    from engine.runtime.opening import require
    from engine.runtime.place import open_place

    compute = settled(recipe.compute)
    if compute.runtime == "torch":
        raise UserError("--runtime torch has nothing to export; give openvino, onnxruntime or tensorrt")
    place = open_place(compute, recipe.tensorrt, torch.device(compute.device), say=_say)
    if place.runtime != "tensorrt":  # its engines can be built where they cannot run
        require(place)
    networks = Networks(recipe, place.runtime, student)
    found, reason = read_images(images, recipe.evaluate, ROWS)
    if reason:
        _say(reason)
    real = RealInputs(found, networks) if found else None
    exported = Exported(target=f"{place.runtime} {place.precision}", proofs={})
    for name in names:
        proof = prove(name, networks, real, place)
        exported.proofs[name] = proof.as_json() | {"no_real_images": reason}
        record(folder / REPORT, exported, _say)
    return exported


def _say(line: str) -> None:
    print(line, flush=True)
