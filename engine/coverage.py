"""Whether a generation will make images of every class."""

from engine.config.recipe import Recipe
from engine.stages.labels import classes_covered

MORE_SHARDS = "give more --shards"
MORE_BATCHES = "raise schedule.init_batches or synthesize.batch_size"


def planned_coverage(recipe: Recipe, batches: int, more: str) -> str:
    """Return a line on how many classes the batches cover; it starts with `warning: ` if some are missing.

    `more`: how the user asks for more batches.
    """
    size, weights, classes = recipe.synthesize.batch_size, recipe.class_weights, len(recipe.class_names)
    wanted = classes if weights is None else sum(weight > 0 for weight in weights)
    covered = classes_covered(
        batches, batch_size=size, num_classes=classes, seed=recipe.seed, weights=weights
    )
    if covered == wanted:
        each = batches * size / wanted
        left_out = f" ({classes - wanted:,} of weight 0 get none)" if wanted < classes else ""
        return f"classes: all {wanted:,} get images, {each:,.1f} synthesized each on average{left_out}"
    enough = f" ({-(-wanted // size):,} batches cover all)" if weights is None else ""
    return (
        f"warning: {batches * size:,} synthesized images cover {covered:,} of {wanted:,} classes, and the"
        f" student learns nothing of the others; {more}{enough}"
    )


def coverage_warning(recipe: Recipe, batches: int, more: str) -> str | None:
    """Return `planned_coverage`, without its `warning: `, if classes are missing."""
    line = planned_coverage(recipe, batches, more)
    text = line.removeprefix("warning: ")
    return text if text != line else None
