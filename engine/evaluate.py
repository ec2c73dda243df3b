"""Test accuracy of a finished run's student and its teacher; the last line is JSON."""

import json
import sys
from argparse import ArgumentError
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser

from engine.cli.arguments import require_named
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
    parser = ArgumentParser(prog="python -m engine.evaluate", description=__doc__, exit_on_error=False)
    parser.add_argument("--run", metavar="DIR", required=True, help="folder of a finished run")
    parser.add_argument("--root", metavar="DIR", help="folder of the test set's files (default: the run's)")
    parser.add_argument("--dataset", metavar="NAME", help="fashion-mnist or none (default: the run's)")
    for section in ("teacher", "student"):
        parser.add_argument(
            f"--{section}.name", metavar="NAME", help="allows the run's module:factory to be imported"
        )
    add_log_flags(parser)
    try:
        options = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(f"{error}; --help lists the options (--run DIR)") from None
    named = [options[f"{section}.name"] for section in ("teacher", "student")]
    result = evaluate_run(Path(options.run), named, root=options.root, dataset=options.dataset)
    print(f"teacher {result['teacher_top1']:.2%}, student {result['student_top1']:.2%}, agreement", end=" ")
    print(f"{result['agreement']:.2%}")
    print(json.dumps(result))


def evaluate_run(
    folder: Path, named: Collection[str | None] = (), *, root: str | None = None, dataset: str | None = None
) -> dict[str, float]:
    """teacher_top1, student_top1 and agreement of the run in `folder`, on the test set of its recipe.

    `named`: factories that may be imported, in addition to those that the run remembers. Raises UserError
    naming the file that is missing, unreadable or not the run's.
    """
    made_with, record, fix = own_settings(folder), RunRecord.read(folder), "restore that file"
    weights = str(require_student(folder, record))
    recipe = load_recipe(str((folder / CONFIG).resolve()), {"evaluate.dataset": dataset} if dataset else None)
    require_named({"teacher": recipe.teacher, "student": recipe.student}, named, record.factories)
    require_same_weights(recipe, record.weights, [made_with], whose=f"--run {folder}", fix=fix)
    test_set, reason = load_test_set(replace(recipe.evaluate, root=root or recipe.evaluate.root))
    if test_set is None:
        raise UserError(
            f"no test set: {reason}; --dataset fashion-mnist (10 classes of 32x32, the only one so far) and "
            "--root FOLDER name one"
        )
    from engine.models.loading import load_classifier
    from engine.stages.evaluate import evaluate

    accelerator = open_accelerator(resolve_compute(ComputeConfig(precision="fp32")))
    student = load_classifier(replace(recipe.student, weights=weights), "student")
    teacher = load_classifier(recipe.teacher, "teacher")
    return evaluate(teacher, student, test_set.images, test_set.labels, accelerator)._asdict()


if __name__ == "__main__":
    sys.exit(main(command))
