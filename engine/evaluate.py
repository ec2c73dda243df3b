"""Measure accuracies on a test set: of a finished run, of files of weights, of an ONNX file.

The last line of output is JSON.
"""

import json
import logging
import re
import sys
from argparse import ArgumentError
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from engine.cli.arguments import command_parser, parse, require_named, value_after
from engine.cli.main import main
from engine.cli.resolve import read_networks, resolve_compute
from engine.config.classifier import ClassifierConfig
from engine.config.compute import ComputeConfig
from engine.config.evaluate import EvaluateConfig
from engine.config.recipe import Recipe
from engine.datasets.test_set import open_test_set
from engine.distributed import open_accelerator
from engine.errors import UserError
from engine.generation.provenance import require_same_weights
from engine.progress import Progress
from engine.recipes.load import load_recipe
from engine.terminal import add_log_flags, console
from engine.training.run_folder import own_recipe, own_settings, require_student
from engine.training.run_record import RunRecord

if TYPE_CHECKING:
    from engine.exporting.onnx_file import OnnxClassifier

logger = logging.getLogger(__name__)

SECTIONS = ("teacher", "student")
NO_TEST_SET = "give --data with a path, torchvision:NAME or fashion-mnist"


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """What to measure."""

    recipe: Recipe | None = None
    classifiers: dict[str, ClassifierConfig]
    """Settings and weights of the teacher, the student, or both."""
    onnx: Path | None = None


def command(arguments: Sequence[str]) -> None:
    """Run `python -m engine.evaluate` with these arguments."""
    parser = command_parser("engine.evaluate", __doc__)
    parser.add_argument("--run", metavar="DIR", help="folder of a finished run: its student and its teacher")
    parser.add_argument(
        "--recipe",
        metavar="NAME or FILE",
        help="instead of --run: the recipe of the files to measure; settings of its networks can be set, "
        "such as --teacher.image_size 64",
    )
    for section in SECTIONS:
        parser.add_argument(
            f"--{section}",
            metavar="FILE",
            help=f"weights of the {section} (default: the run's, or the recipe's if it names some)",
        )
    parser.add_argument(
        "--onnx",
        metavar="FILE",
        help="an ONNX file, measured with ONNX Runtime; one without the JSON of an export needs --recipe",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="test set: a path, torchvision:NAME or fashion-mnist (default: evaluate.data of the recipe)",
    )
    parser.add_argument(
        "--root", metavar="DIR", help="folder of the files of torchvision:NAME or fashion-mnist"
    )
    parser.add_argument("--per-class", "--per_class", action="store_true", help="also show each class")
    for section in SECTIONS:
        parser.add_argument(
            f"--{section}.name",
            dest=f"{section}_name",
            metavar="NAME",
            help=f"module:factory of the {section}, to allow its code; with --recipe, any network",
        )
    add_log_flags(parser)
    settings, rest = _settings(arguments)
    options = parse(parser, rest)
    names = {section: options[f"{section}_name"] for section in SECTIONS}
    given = {section: options[section] for section in SECTIONS if options[section]}
    if options.run and options.recipe:
        raise UserError("--run and --recipe are both given; leave out --recipe, since a run has its own")
    if settings and not options.recipe:
        raise UserError(f"--{next(iter(settings))} needs --recipe R; a run has its own settings")
    if options.run:
        subjects = _of_run(Path(options.run), names.values(), given)
    elif options.recipe:
        subjects = _of_recipe(options.recipe, names, given, settings)
    elif given:
        raise UserError(f"--{next(iter(given))} needs --recipe R, which says what network the weights are of")
    else:
        subjects = Subjects(classifiers={})
    if options.onnx:
        subjects = replace(subjects, onnx=Path(options.onnx))
    elif not subjects.classifiers:
        raise UserError(
            "there is nothing to measure; give --run DIR, --recipe R with --student FILE, or --onnx FILE"
        )
    with Progress() as progress:
        result = measure(subjects, options.data, options.root, progress)
    _show(result, per_class=options.per_class)


def evaluate_run(
    folder: Path, named: Collection[str | None] = (), *, data: str | None = None, root: str | None = None
) -> dict[str, Any]:
    """Return what `measure` does for the student and the teacher of a run.

    Args:
        folder: folder of the run.
        named: factories that may be imported, in addition to those in the run's record.
        data: the test set, instead of the recipe's.
        root: folder of the test set's files, instead of the recipe's.

    Raises:
        UserError: if a file is missing, unreadable or not the run's, or there is no test set.
    """
    with Progress() as progress:
        return measure(_of_run(folder, named, {}), data, root, progress)


def _of_run(folder: Path, named: Collection[str | None], given: dict[str, str]) -> Subjects:
    """Return student and teacher of a run; files in `given` replace its own, by section."""
    recipe, record = own_recipe(folder), RunRecord.read(folder)
    weights = given.get("student") or str(require_student(folder, record))
    require_named({"teacher": recipe.teacher, "student": recipe.student}, named, record.factories)
    if "teacher" not in given:
        made_with, fix = [own_settings(folder)], "restore that file"
        require_same_weights(recipe, record.weights, made_with, whose=f"--run {folder}", fix=fix)
    teacher = replace(recipe.teacher, weights=given.get("teacher", recipe.teacher.weights))
    student = replace(recipe.student, weights=weights)
    return Subjects(recipe=recipe, classifiers={"teacher": teacher, "student": student})


def _settings(arguments: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """Return the settings of teacher and student in a command line, such as mean, and the other arguments."""
    settings: dict[str, object] = {}
    rest: list[str] = []
    given = iter(arguments)
    for argument in given:
        found = re.fullmatch(r"--((?:teacher|student)\.(?!name\b)\w+)(?:=(.*))?", argument)
        if found is None:
            rest.append(argument)
            continue
        value = found[2] if found[2] is not None else value_after(next(given, None))
        if value is None:
            raise ArgumentError(None, f"argument {argument}: expected one argument")
        try:
            settings[found[1]] = yaml.safe_load(value)
        except yaml.YAMLError:
            text = f"argument {argument}: '{value}' is not a value; put quotes around one with spaces"
            raise ArgumentError(None, text) from None
    return settings, rest


def _of_recipe(
    recipe_name: str,
    names: Mapping[str, str | None],
    given: Mapping[str, str],
    settings: Mapping[str, object],
) -> Subjects:
    """Return the networks of a recipe, with `settings`, whose weights the recipe or `given` names."""
    overrides = {**settings, **{f"{section}.name": name for section, name in names.items() if name}}
    if "teacher" in given:
        overrides["teacher.weights"] = given["teacher"]
    recipe = load_recipe(recipe_name, overrides)
    require_named({"teacher": recipe.teacher, "student": recipe.student}, names.values())
    recipe = read_networks(recipe)
    classifiers = {}
    for section in SECTIONS:
        config = getattr(recipe, section)
        if weights := given.get(section, config.weights):
            classifiers[section] = replace(config, weights=weights)
    return Subjects(recipe=recipe, classifiers=classifiers)


def measure(subjects: Subjects, data: str | None, root: str | None, progress: Progress) -> dict[str, Any]:
    """Return NETWORK_top1 and NETWORK_top5 of teacher, student and onnx, as far as they are given.

    The result also has `agreement` of the first two, `images`, `data`, `format` and `per_class`.

    Args:
        data: the test set, instead of the recipe's.
        root: folder of the test set's files, instead of the recipe's.

    Raises:
        UserError: if a file is missing or unreadable, or there is no test set.
    """
    from engine.models.loading import load_classifier
    from engine.stages.evaluate import Logits, evaluate, in_float32

    compute = resolve_compute(ComputeConfig(precision="fp32"))
    model = _open_onnx(subjects, compute.threads or 1)
    recipe = subjects.recipe
    if recipe is not None:
        class_names, size = recipe.names, recipe.teacher.size
    else:
        assert model is not None
        assert model.class_names is not None
        class_names, size = model.class_names, model.size
    test_set, reason = open_test_set(_test_set(recipe, data, root), class_names, size)
    if test_set is None:
        raise UserError(f"no test set: {reason}; {NO_TEST_SET}")
    test_set.announce()
    accelerator = open_accelerator(compute)
    classifiers = {name: load_classifier(config, name) for name, config in subjects.classifiers.items()}
    onnx: dict[str, Logits] = {} if model is None else {"onnx": model.logits}
    with (
        in_float32(classifiers, accelerator) as networks,
        progress.stage("evaluate", total=len(test_set), unit="images") as stage,
    ):
        result = evaluate({**networks, **onnx}, test_set.batches(), len(class_names), stage.advance)
    if result.warning:
        logger.warning(result.warning)
    return {
        **result.shares(),
        "images": result.images,
        "data": test_set.data,
        "format": test_set.format,
        "per_class": result.per_class(class_names),
    }


def _open_onnx(subjects: Subjects, threads: int) -> "OnnxClassifier | None":
    if subjects.onnx is None:
        return None
    from engine.exporting.onnx_file import open_onnx, require_same_classes

    recipe = subjects.recipe
    if recipe is None:
        return open_onnx(subjects.onnx, None, None, threads)
    size = recipe.teacher.size
    model = open_onnx(subjects.onnx, recipe.student, size, threads)
    require_same_classes(model, recipe.names, size, subjects.onnx)
    return model


def _test_set(recipe: Recipe | None, data: str | None, root: str | None) -> EvaluateConfig:
    """Return the recipe's test set; `data` replaces all of it, `root` only the folder."""
    if data is not None or recipe is None:
        return EvaluateConfig(data=data, root=root)
    return replace(recipe.evaluate, root=root or recipe.evaluate.root)


def _show(result: dict[str, Any], *, per_class: bool) -> None:
    """Print the tables, then the JSON, which has `per_class` only if that is shown."""
    networks = [key.removesuffix("_top1") for key in result if key.endswith("_top1")]
    table = Table("", "top-1", "top-5")
    for name in networks:
        table.add_row(name, _percent(result[f"{name}_top1"]), _percent(result[f"{name}_top5"]))
    console().print(table)
    if result["agreement"] is not None:
        print(f"{networks[0]} and {networks[1]} agree on {_percent(result['agreement'])}")
    print(f"{result['images']} images of {result['data']} ({result['format']})")
    by_class = result.pop("per_class")
    if per_class:
        table = Table("class", "images", *networks)
        for name, found in by_class.items():
            table.add_row(name, str(found["images"]), *(_percent(found[each]) for each in networks))
        console().print(table)
        result["per_class"] = by_class
    print(json.dumps(result))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


if __name__ == "__main__":
    sys.exit(main(command))
