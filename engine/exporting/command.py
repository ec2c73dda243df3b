"""Exports the frozen networks of a recipe for a runtime: ONNX graphs, engines, and the proof parity.json."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.atomic import replacing
from engine.cli.arguments import CommandLine, add_short_flags, command_parser
from engine.cli.resolve import resolve_compute
from engine.config.decides import settings
from engine.config.recipe import OF_MACHINE_SECTIONS, Recipe, with_default_batches
from engine.errors import UserError
from engine.exporting.up_to_date import Exported, Stamp
from engine.generation.provenance import CLIP, PRIOR, TEACHER, require_same_weights
from engine.models.pipeline_folder import TEXT_TO_IMAGE, PipelineFolder
from engine.training.run_folder import BANK, by_hash, own_settings, require_agreement, require_student
from engine.training.run_record import RunRecord


def report_table(proofs: dict[str, dict[str, Any]]) -> str:
    """One line a network: the precision it took, size, time, and the proof's relative errors."""
    lines = [f"{'network':<14} {'precision':<10} {'MB':>8} {'seconds':>8}  relative error to torch"]
    for network, proof in proofs.items():
        errors = "; ".join(
            f"by {by}: " + ", ".join(f"{_error(found)} on {kind} inputs" for kind, found in kinds.items())
            for by, kinds in proof["parity"].items()
        )
        if called := proof["as_called"]:
            top1 = f"{called['top1_agreement']:.1%} top-1 agreement"
            errors += f"; as called: {_error(called)}, {top1} on {called['images']} images {called['source']}"
        cells = f"{network:<14} {proof['precision']:<10} {proof['megabytes']:>8.1f} {proof['seconds']:>8.1f}"
        lines.append(f"{cells}  {errors}")
    return "\n".join(lines)


def _error(found: dict[str, Any]) -> str:
    return f"{found['relative_error']:.1e}" if found["finite"] else "not finite"


logger = logging.getLogger(__name__)


def write_report(path: Path, exported: Exported) -> None:
    """Add the proofs to the report of earlier exports; replace a damaged report, with a warning."""
    report = _read(path)
    for network, proof in exported.proofs.items():
        report.setdefault(network, {})[exported.target] = proof
    with replacing(path) as part:
        part.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        report = None
    if isinstance(report, dict) and all(isinstance(targets, dict) for targets in report.values()):
        return report
    logger.warning(
        f"{path} was damaged and is replaced; run the other exports to this folder again for their proofs"
    )
    return {}


logger = logging.getLogger(__name__)

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
PARTS = {"teacher": TEACHER, "clip": CLIP, "unet": PRIOR, "vae_encoder": PRIOR, "vae_decoder": PRIOR}
"""What a run's record calls the weights of a network."""
FREE = tuple(
    f"{key}:"
    for key, effects in settings(Recipe).items()
    if "execution" in effects or key.partition(".")[0] in OF_MACHINE_SECTIONS
)
"""Prefixes, in `differences`, of the settings that may differ from the run's: they say how to compute."""


def command(arguments: Sequence[str]) -> None:
    parser = command_parser("export", __doc__)
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the models, graphs, engines and parity.json (required)"
    )
    parser.add_argument(
        "--network",
        metavar="NAMES",
        help=f"comma-separated: {', '.join(GROUPS)}; clip is the filter's and an image-variation prior's"
        f" (default: those of {DEFAULT} that the recipe has; with --run: student)",
    )
    parser.add_argument(
        "--run", metavar="DIR", help="the folder of a finished run: its settings, its student"
    )
    parser.add_argument("--images", metavar="DIR", help="real images for the proof")
    add_short_flags(parser)
    line = CommandLine.read(arguments)
    given_run = line.value("run")
    run = Path(given_run) if given_run else None
    record = RunRecord.read(run) if run else RunRecord()
    own = _own_settings(run) if run else None
    base = None if line.given("recipe") else own
    recipe, options = line.parse(parser, base=base, source=f"the run {run}", remembered=record.factories)
    recipe = with_default_batches(recipe)
    if not options.out:
        raise UserError("--out is missing; give the folder that shall hold the engines")
    given = options.network or ("student" if run else None)
    names = _networks(given, recipe) if given else _all_networks(recipe)
    student = None
    if run and own:
        _require_run(run, own, record, recipe, names)
        student = str(require_student(run, record))
    folder = Path(options.out)
    recipe = replace(recipe, compute=replace(recipe.compute, engines=str(folder)))
    stamp = Stamp.of(recipe, names, student, options.images, str(run.resolve()) if run else None)
    exported = stamp.found(folder)
    if exported:
        print(f"{folder} is up to date: neither the networks nor the settings have changed")
        write_report(folder / REPORT, exported)  # another recipe's may stand there now
    else:
        banks = [str(run / BANK), *record.banks] if run else []
        exported = _export(recipe, names, student, options.images, folder, run, banks)
        stamp.put_on(folder, exported)
    print(report_table(exported.proofs))
    for name, given in exported.handed_over.items():
        print(f"{name}: the model and {name}.json, which says how to call it, are in {folder / given}")


def _own_settings(run: Path) -> dict[str, Any]:
    """Of a run, but for how it computed."""
    return {name: value for name, value in own_settings(run).items() if name not in ("compute", "tensorrt")}


def _require_run(
    run: Path, own: Mapping[str, Any], record: RunRecord, recipe: Recipe, names: Sequence[str]
) -> None:
    """Refuses settings, and files of the networks, that are not the run's."""
    require_agreement(run, recipe, free=(*FREE, *by_hash(run)))
    parts = sorted({PARTS.get(name, PRIOR) for name in names if name != "student"})
    fix = "restore it, or export without --run"
    require_same_weights(recipe, record.weights, [own], whose=f"--run {run}", fix=fix, parts=parts)


def _all_networks(recipe: Recipe) -> list[str]:
    """The frozen networks that the recipe has."""
    clip, prior = bool(recipe.filter.model), bool(recipe.augment.prior)
    has = {"clip": clip, IMAGE_ENCODER: prior, "unet": prior, "vae_encoder": prior, "vae_decoder": prior}
    return [name for name in _networks(DEFAULT, recipe) if has.get(name, True)]


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
    recipe: Recipe,
    names: list[str],
    student: str | None,
    images: str | None,
    folder: Path,
    run: Path | None,
    banks: Sequence[str],
) -> Exported:
    """Each network's proof is in the report as soon as it is made."""
    import torch

    from engine.exporting.handover import HandOver
    from engine.exporting.networks import Networks
    from engine.exporting.parity import ROWS, prove
    from engine.exporting.real_inputs import RealInputs, read_images
    from engine.exporting.sample import sample_of
    from engine.runtime.base import runtime_options
    from engine.runtime.open import require

    compute = resolve_compute(recipe.compute, must_run=False)
    if compute.runtime == "torch":
        raise UserError("--runtime torch has nothing to export; give openvino, onnxruntime or tensorrt")
    options = runtime_options(compute, recipe.tensorrt, torch.device(compute.device))
    if options.runtime != "tensorrt":  # its engines can be built where they cannot run
        require(options)
    networks = Networks(recipe, options.runtime, student)
    found, reason = read_images(images, recipe.evaluate, ROWS)
    if reason and run is None:  # a run's model is compared on images of its bank
        logger.warning(reason)
    real = RealInputs(found, networks) if found else None
    exported = Exported(target=f"{options.runtime} {options.precision}", proofs={}, handed_over={})
    sample = sample_of(banks, recipe.teacher.image_size)
    hand_over = HandOver(
        out=folder, networks=networks, class_names=recipe.class_names, run=run, sample=sample
    )
    for name in names:
        proof = prove(name, networks, real, options, hand_over)
        exported.proofs[name] = proof.as_json() | {"no_real_images": reason}
        if proof.handed_over:
            exported.handed_over[name] = str(proof.handed_over.relative_to(folder))
        write_report(folder / REPORT, exported)
    return exported
