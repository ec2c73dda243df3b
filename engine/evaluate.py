"""Measure the test accuracy of a finished run's student and teacher. The last line of output is JSON."""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from engine.cli.arguments import command_parser, parse, require_named
from engine.cli.main import main
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.config.recipe import CONFIG
from engine.datasets.test_set import load_test_set
from engine.distributed import open_accelerator
from engine.errors import UserError
from engine.generation.provenance import require_same_weights
from engine.recipes.load import load_recipe
from engine.terminal import add_log_flags
from engine.training.run_folder import own_settings, require_student
from engine.training.run_record import RunRecord


def command(arguments: Sequence[str]) -> None:
    """Run `python -m engine.evaluate` with these arguments."""
    parser = command_parser("engine.evaluate", __doc__)
    parser.add_argument("--run", metavar="DIR", help="folder of a finished run (required)")
    parser.add_argument("--root", metavar="DIR", help="folder of the test set's files (default: the run's)")
    parser.add_argument("--dataset", metavar="NAME", help="fashion-mnist or none (default: the run's)")
    for section in ("teacher", "student"):
        parser.add_argument(
            f"--{section}.name",
            dest=f"{section}_name",
            metavar="NAME",
            help=f"module:factory of the {section}; needed only if its source has changed since the run",
        )
    add_log_flags(parser)
    options = parse(parser, arguments)
    if not options.run:
        raise UserError("--run DIR is missing; give the folder of a finished run")
    named = [options[f"{section}_name"] for section in ("teacher", "student")]
    result = evaluate_run(Path(options.run), named, root=options.root, dataset=options.dataset)
    print(f"teacher {result['teacher_top1']:.2%}, student {result['student_top1']:.2%}, agreement", end=" ")
    print(f"{result['agreement']:.2%}")
    print(json.dumps(result))


def evaluate_run(
    folder: Path, named: Collection[str | None] = (), *, root: str | None = None, dataset: str | None = None
) -> dict[str, float]:
    """Return teacher_top1, student_top1 and agreement of a run on the test set of its recipe.

    Args:
        folder: folder of the run.
        named: factories that may be imported, in addition to those in the run's record.
        root: folder of the test set's files, instead of the recipe's.
        dataset: name of the test set, instead of the recipe's.

    Raises:
        UserError: if a file is missing, unreadable or not the run's, or there is no test set.
    """
    settings, record, fix = own_settings(folder), RunRecord.read(folder), "restore that file"
    weights = str(require_student(folder, record))
    recipe = load_recipe(str((folder / CONFIG).resolve()), {"evaluate.dataset": dataset} if dataset else None)
    require_named({"teacher": recipe.teacher, "student": recipe.student}, named, record.factories)
    require_same_weights(recipe, record.weights, [settings], whose=f"--run {folder}", fix=fix)
    test_set, reason = load_test_set(replace(recipe.evaluate, root=root or recipe.evaluate.root))
    if test_set is None:
        raise UserError(
            f"no test set: {reason}; give --dataset fashion-mnist (10 classes of 32x32 images, the only one "
            "so far) and --root DIR"
        )
    from engine.models.loading import load_classifier
    from engine.stages.evaluate import evaluate

    accelerator = open_accelerator(resolve_compute(ComputeConfig(precision="fp32")))
    student = load_classifier(replace(recipe.student, weights=weights), "student")
    teacher = load_classifier(recipe.teacher, "teacher")
    return evaluate(teacher, student, test_set.images, test_set.labels, accelerator)._asdict()


if __name__ == "__main__":
    sys.exit(main(command))
