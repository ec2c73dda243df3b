"""Show what the engine sees in a teacher, which student it proposes, and about what a run will cost.

Writes a recipe with comments, to change and to run.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.atomic import replacing
from engine.cli.arguments import CommandLine, add_short_flags, command_parser
from engine.cli.main import main
from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.progress import clock
from engine.terminal import console

if TYPE_CHECKING:
    from engine.inspection.facts import Facts


def command(arguments: Sequence[str]) -> None:
    """Run `python -m engine.inspect` with these arguments."""
    parser = command_parser("engine.inspect", __doc__)
    parser.add_argument("--out", metavar="FILE", help="the recipe's file (default: NAME.yaml)")
    parser.add_argument(
        "--parity",
        action="store_true",
        help="also export the teacher, open it in the runtime that a run would use, and measure its parity",
    )
    add_short_flags(parser)
    line = CommandLine.read(arguments)
    if not line.has_teacher and not line.given("recipe") and not {"help", "h"} & set(line.flags):
        raise UserError("--teacher NAME is missing; e.g. --teacher timm:resnet34 --teacher.weights w.pth")
    recipe, options = line.parse(parser)
    file = Path(options.out or f"{recipe.name}.yaml")
    if file.exists():
        raise UserError(f"--out {file} exists already; give another --out, or remove it")
    facts = _facts(recipe, parity=options.parity)
    from rich.table import Table

    from engine.inspection.recipe_file import recipe_text

    table = Table(title=recipe.teacher.name, show_header=False, title_justify="left")
    for name, text in _rows(facts):
        table.add_row(name, text)
    console().print(table)
    with replacing(file) as temporary:
        temporary.write_text(recipe_text(facts, str(file)), encoding="utf-8")
    print(f"wrote {file}; run it with: python -m engine.run --recipe {file} --budget 1h")


def _rows(facts: "Facts") -> Iterator[tuple[str, str]]:
    recipe, origins = facts.recipe, facts.origins
    teacher = recipe.teacher
    mean, std = teacher.normalization
    names = ", ".join(recipe.names[:6]) + (", ..." if len(recipe.names) > 6 else "")
    yield "input", f"{teacher.channels} x {teacher.size_text}{_by(origins, 'image_size')}"
    if facts.is_size_assumed:
        yield "", "if it was trained on images of another size, give --teacher.image_size"
    yield "normalization", f"mean {_short(mean)}, std {_short(std)}{_by(origins, 'mean')}"
    yield "classes", f"{teacher.classes:,}{_by(origins, 'num_classes')}: {names}"
    yield "parameters", f"{facts.parameters[0]:,}; {_million(facts.multiplications[0])} an image"
    yield "statistics", facts.statistics
    yield "feature map", facts.feature or "none, so distill.w_feature is 0"
    if facts.feature and recipe.distill.w_feature == 0:
        yield "", "not used, as distill.w_feature is 0"
    yield from facts.precisions.items()
    share = facts.multiplications[1] / facts.multiplications[0]
    yield (
        "student",
        f"{recipe.student.name}: {facts.parameters[1]:,} parameters; "
        f"{_million(facts.multiplications[1])} an image, {share:.2f} of the teacher's",
    )
    batch = recipe.synthesize.batch_size
    yield (
        "memory",
        f"about {batch * facts.per_image.kept_bytes / 2**30:.1f} GiB for a batch of {batch} images",
    )
    parts = ", ".join(f"{name} {clock(seconds)}" for name, seconds in facts.seconds.items())
    yield "time", f"about {clock(sum(facts.seconds.values()))} on this machine ({parts}); or give --budget"


def _facts(recipe: Recipe, *, parity: bool) -> "Facts":
    from engine.cli.resolve import resolve
    from engine.inspection.facts import find_facts
    from engine.models.reading import read_teacher

    reading = read_teacher(recipe.teacher)
    resolved = resolve(reading.filled_into(recipe), makes_images=False)
    facts = find_facts(resolved, reading, parity=parity)
    by_run = {name: getattr(recipe, name) for name in ("compute", "tensorrt", "feed", "augment", "filter")}
    return replace(facts, recipe=replace(facts.recipe, **by_run))


def _by(origins: Mapping[str, str], name: str) -> str:
    return f" ({origins[name]})" if name in origins else ""


def _short(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _million(count: int) -> str:
    return f"{count / 1e6:,.0f} million multiplications"


if __name__ == "__main__":
    sys.exit(main(command))
