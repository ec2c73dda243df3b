"""Whether a generation will make images of every class."""

from engine.recipe import Recipe
from engine.stages.labels import classes_covered

MORE_SHARDS = "give more --shards"
MORE_BATCHES = "raise schedule.init_batches or synthesize.batch_size"


def planned_coverage(recipe: Recipe, batches: int, more: str) -> str:
    """Return how many classes so many batches have, a line that starts with `warning` if some are missing.

    `more`: how the user asks for more batches.
    """
    size, weights = recipe.synthesize.batch_size, recipe.class_weights
    wanted = len(recipe.class_names) if weights is None else sum(weight > 0 for weight in weights)
    covered = classes_covered(
        batches, batch_size=size, num_classes=len(recipe.class_names), seed=recipe.seed, weights=weights
    )
    if covered == wanted:
        return (
            f"classes: all {wanted:,} get images, {batches * size / wanted:,.1f} synthesized each on average"
        )
    enough = "more" if weights is not None else f"{-(-wanted // size):,} or more"
    return (
        f"warning: {batches * size:,} synthesized images cover {covered:,} of {wanted:,} classes, and the"
        f" student learns nothing of the others; {more}{enough}"
    )


def coverage_warning(recipe: Recipe, batches: int, more: str) -> str | None:
    """Return `planned_coverage` if classes are missing."""
    line = planned_coverage(recipe, batches, more)
    return line if line.startswith("warning") else None
