"""What is known of an arm and a seed: evaluated after the training, and kept in a file of its folder."""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.clock import Snapshot
from bench.e2e.own_loop import Trained
from bench.rows import commit
from engine.atomic import replacing
from engine.config.recipe import Recipe
from engine.datasets.test_set import open_test_set
from engine.errors import UserError
from engine.stages.evaluate import evaluate, in_float32

FILE = "results.json"
FINAL = "final"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures of one arm and seed. Shares are in [0, 1]."""

    arm: str
    seed: int
    seconds: float
    """How long it was to take."""
    wall_seconds: float
    """How long it took, without the evaluation."""
    images: int
    """Images in the bank at the end."""
    steps: int
    """Training steps."""
    top1: float
    """Of the final student."""
    agreement: float
    """Share of the test images for which the final student and the teacher see the same class."""
    teacher_top1: float
    curve: Sequence[tuple[float, float]]
    """Seconds and top-1 of the student at each moment; the last one is the final student."""
    device: str
    precision: str
    commit: str

    def write(self, folder: Path) -> None:
        """Write the file of `folder`, which marks the arm and seed as finished."""
        with replacing(folder / FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def finished(folder: Path, seconds: float) -> Result | None:
    """Return the result in `folder`, or None. Raises UserError if it is of another number of seconds."""
    if not (folder / FILE).is_file():
        return None
    stored: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    result = Result(**{**stored, "curve": tuple((at, top1) for at, top1 in stored["curve"])})
    if result.seconds != seconds:
        raise UserError(
            f"--resume: {folder} was measured with --seconds {result.seconds:g}, not {seconds:g}; "
            "give that number or another --out"
        )
    return result


def require_test_set(recipe: Recipe) -> None:
    """Raise UserError if there is nothing to measure the students on."""
    test_set, reason = open_test_set(recipe.evaluate, recipe.names, recipe.teacher.size)
    if test_set is None:
        raise UserError(f"e2e measures on the test set, but there is none: {reason}")


def evaluated(
    recipe: Recipe, seconds: float, trained: Trained, snapshots: Sequence[Snapshot], precision: str
) -> Result:
    """Evaluate the final student and the students of all moments, in one pass over the test set."""
    test_set, _ = open_test_set(recipe.evaluate, recipe.names, recipe.teacher.size)
    assert test_set is not None, "require_test_set was called"
    students = []
    for snapshot in snapshots:
        students.append(copy.deepcopy(trained.pair.student))
        students[-1].load_state_dict(snapshot.weights)
    *earlier, final = students
    classifiers = {"teacher": trained.pair.teacher, FINAL: final}
    classifiers |= {str(number): student for number, student in enumerate(earlier)}
    with in_float32(classifiers, trained.accelerator) as networks:
        found = evaluate(networks, test_set.batches(), len(recipe.names))
    assert found.agreement is not None
    top1 = {name: accuracy.top1 for name, accuracy in found.accuracies.items()}
    of_moments = [*(top1[str(number)] for number in range(len(earlier))), top1[FINAL]]
    return Result(
        arm=recipe.name,
        seed=recipe.seed,
        seconds=seconds,
        wall_seconds=snapshots[-1].seconds,
        images=trained.images,
        steps=trained.steps,
        top1=top1[FINAL],
        agreement=found.agreement,
        teacher_top1=top1["teacher"],
        curve=tuple(zip((snapshot.seconds for snapshot in snapshots), of_moments, strict=True)),
        device=trained.accelerator.device.type,
        precision=precision,
        commit=commit(),
    )
