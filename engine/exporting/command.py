"""Export the networks of a recipe for a runtime: ONNX graphs, engines, and the parity report parity.json."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from engine.atomic import replacing
from engine.cli.arguments import CommandLine, add_short_flags, command_parser
from engine.cli.resolve import resolve_compute
from engine.config.decides import settings
from engine.config.recipe import OF_MACHINE_SECTIONS, Recipe, with_default_batches
from engine.errors import UserError
from engine.exporting.up_to_date import Exported, UpToDateMarker
from engine.generation.provenance import CLIP, PRIOR, TEACHER, require_same_weights
from engine.models.pipeline_folder import TEXT_TO_IMAGE, PipelineFolder
from engine.training.run_folder import BANK, hashed_settings, own_settings, require_agreement, require_student
from engine.training.run_record import RunRecord

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
WEIGHTS = {"teacher": TEACHER, "clip": CLIP, "unet": PRIOR, "vae_encoder": PRIOR, "vae_decoder": PRIOR}
"""By network, the name of its weights in a run's record."""
MAY_DIFFER = tuple(
    f"{key}:"
    for key, effects in settings(Recipe).items()
    if "execution" in effects or key.partition(".")[0] in OF_MACHINE_SECTIONS
)
"""Prefixes, in `differences`, of the settings that need not be the run's, as they only say how to compute."""


def command(arguments: Sequence[str]) -> None:
    """Export the networks, or report that the folder is up to date."""
    line = CommandLine.read(arguments)
    given_run = line.value("run")
    run = Path(given_run) if given_run else None
    record = RunRecord.read(run) if run else RunRecord()
    own = _settings_of_run(run) if run else None
    base = None if line.given("recipe") else own
    recipe, options = line.parse(_parser(), base=base, source=f"the run {run}", remembered=record.factories)
    recipe = with_default_batches(recipe)
    if not options.out:
        raise UserError("--out is missing; name a folder for the models, graphs and engines")
    requested = options.network or ("student" if run else None)
    names = _parse_names(requested, recipe) if requested else _names_in_recipe(recipe)
    student = None
    if run and own:
        _require_run(run, own, record, recipe, names)
        student = str(require_student(run, record))
    folder = Path(options.out)
    recipe = replace(recipe, compute=replace(recipe.compute, engines=str(folder)))
    marker = UpToDateMarker.of(recipe, names, student, options.images, str(run.resolve()) if run else None)
    exported = marker.read(folder)
    if exported:
        print(f"{folder} is up to date: neither the networks nor the settings have changed")
        write_report(folder / REPORT, exported)  # it may describe the networks of another recipe
    else:
        banks = [str(run / BANK), *record.banks] if run else []
        exported = _export(recipe, names, student, options.images, folder, run, banks)
        marker.write(folder, exported)
    print(report_table(exported.reports))
    for name, model in exported.handed_over.items():
        print(f"{name}: the model and {name}.json, which says how to call it, are in {folder / model}")


def _parser() -> ArgumentParser:
    parser = command_parser("export", __doc__)
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the models, graphs, engines and parity.json (required)"
    )
    parser.add_argument(
        "--network",
        metavar="NAMES",
        help=f"networks to export, separated by commas: {', '.join(GROUPS)}; clip is the filter's CLIP"
        f" and the image encoder of the prior (default: {DEFAULT}, without what the recipe lacks;"
        " with --run: student)",
    )
    parser.add_argument(
        "--run", metavar="DIR", help="folder of a finished run; export with its settings and its student"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of real images for the parity check")
    add_short_flags(parser)
    return parser


def _settings_of_run(run: Path) -> dict[str, Any]:
    """Return the run's settings, without those of the machine that it ran on."""
    return {name: value for name, value in own_settings(run).items() if name not in ("compute", "tensorrt")}


def _require_run(
    run: Path, own: Mapping[str, Any], record: RunRecord, recipe: Recipe, names: Sequence[str]
) -> None:
    """Raise UserError if settings, or the weights of the networks, are not the run's."""
    require_agreement(run, recipe, free=(*MAY_DIFFER, *hashed_settings(run)))
    parts = sorted({WEIGHTS.get(name, PRIOR) for name in names if name != "student"})
    fix = "restore it, or export without --run"
    require_same_weights(recipe, record.weights, [own], whose=f"--run {run}", fix=fix, networks=parts)


def _names_in_recipe(recipe: Recipe) -> list[str]:
    """Return the names of the frozen networks in the recipe."""
    clip, prior = bool(recipe.filter.model), bool(recipe.augment.prior)
    has = {"clip": clip, IMAGE_ENCODER: prior, "unet": prior, "vae_encoder": prior, "vae_decoder": prior}
    return [name for name in _parse_names(DEFAULT, recipe) if has.get(name, True)]


def _parse_names(requested: str, recipe: Recipe) -> list[str]:
    groups = [name.strip() for name in requested.split(",")]
    unknown = [name for name in groups if name not in GROUPS]
    if unknown:
        raise UserError(f"--network: unknown network '{unknown[0]}'; choose from {', '.join(GROUPS)}")
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
    """Export each network, and add it to the report as soon as it is done."""
    import torch

    from engine.exporting.handover import ModelWriter
    from engine.exporting.networks import Networks
    from engine.exporting.parity import ROWS, export_network
    from engine.exporting.real_inputs import RealInputs, read_images
    from engine.exporting.sample import read_sample
    from engine.runtime.base import runtime_options
    from engine.runtime.open import require

    compute = resolve_compute(recipe.compute, must_run=False)
    if compute.runtime == "torch":
        raise UserError("--runtime torch has nothing to export; choose openvino, onnxruntime or tensorrt")
    options = runtime_options(compute, recipe.tensorrt, torch.device(compute.device))
    if options.runtime != "tensorrt":  # TensorRT can build engines on a machine that cannot run them
        require(options)
    networks = Networks(recipe, options.runtime, student)
    real_images, reason = read_images(images, recipe.evaluate, ROWS)
    if reason and run is None:  # a run's model is also checked on images of its bank
        logger.warning(reason)
    real = RealInputs(real_images, networks) if real_images else None
    exported = Exported(target=f"{options.runtime} {options.precision}", reports={}, handed_over={})
    writer = ModelWriter(
        out=folder,
        networks=networks,
        class_names=recipe.names,
        run=run,
        sample=read_sample(banks, recipe.teacher.size),
    )
    for name in names:
        report = export_network(name, networks, real, options, writer)
        exported.reports[name] = report.as_json() | {"no_real_images": reason}
        if report.handed_over:
            exported.handed_over[name] = str(report.handed_over.relative_to(folder))
        write_report(folder / REPORT, exported)
    return exported


def write_report(path: Path, exported: Exported) -> None:
    """Add an export to the report of earlier ones. A damaged report is replaced, with a warning."""
    report = _read_report(path)
    for network, entry in exported.reports.items():
        report.setdefault(network, {})[exported.target] = entry
    with replacing(path) as part:
        part.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read_report(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        report = None
    if isinstance(report, dict) and all(isinstance(targets, dict) for targets in report.values()):
        return report
    logger.warning(f"{path} was damaged and is replaced; repeat the other exports to restore their entries")
    return {}


def report_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of networks: precision, size, time, and relative errors to torch."""
    lines = [f"{'network':<14} {'precision':<10} {'MB':>8} {'seconds':>8}  relative error to torch"]
    for network, report in reports.items():
        errors = "; ".join(
            f"by {by}: " + ", ".join(f"{_error(parity)} on {kind} inputs" for kind, parity in kinds.items())
            for by, kinds in report["parity"].items()
        )
        if called := report["as_called"]:
            top1 = f"{called['top1_agreement']:.1%} top-1 agreement"
            errors += f"; as called: {_error(called)}, {top1} on {called['images']} images {called['source']}"
        cells = f"{network:<14} {report['precision']:<10} {report['megabytes']:>8.1f}"
        lines.append(f"{cells} {report['seconds']:>8.1f}  {errors}")
    return "\n".join(lines)


def _error(parity: Mapping[str, Any]) -> str:
    return f"{parity['relative_error']:.1e}" if parity["finite"] else "not finite"
