"""Decide `augment.method: auto`: try the prior on one batch, and skip it if it does not fit the teacher."""

import logging
from dataclasses import replace

from engine import networks
from engine.bank.agreement import Agreement, Agreements
from engine.config.recipe import Recipe, with_default_batches
from engine.distributed import open_accelerator
from engine.generation.shard_generator import ShardGenerator
from engine.progress import Progress

logger = logging.getLogger(__name__)

TRIED_SOURCES, TRIED_VARIATIONS = 64, 2
"""Sources in the trial, at most, and variations of each."""
MIN_KEPT = 0.25
"""A prior is skipped if its variations keep less than this share of what the sources have above chance."""


def fit_prior(recipe: Recipe) -> Recipe:
    """Return the recipe with `augment.method` variation or none, and say why in one line.

    Makes a batch of sources and two variations of each. The prior is skipped if the teacher agrees with the
    labels of the variations hardly more often than chance, or far less often than with the sources'. If it
    does not recognize the sources either, the prior is used, with a warning.
    Everything else in the recipe must be resolved; a `micro_batch` may be auto.

    Raises as `engine.networks.load` and `open` do.
    """
    augment = replace(recipe.augment, method="variation")
    sources = replace(recipe.synthesize, batch_size=min(recipe.synthesize.batch_size, TRIED_SOURCES))
    variations = replace(augment, variations=min(augment.variations, TRIED_VARIATIONS))
    trial = with_default_batches(replace(recipe, synthesize=sources, augment=variations))
    logger.info("prior: trying %s on a batch", augment.prior)
    accelerator = open_accelerator(trial.compute)
    opened = networks.open(trial, networks.load(trial, accelerator.device), accelerator)
    rows = ShardGenerator(trial, opened, accelerator, Progress(quiet=True)).make(0, independent=True).rows()
    found = Agreements.of(rows)
    fits = is_fitting(found)
    if found.sources.is_near_chance:
        result = "it is used, but the sources are not recognized either; try more synthesize.steps"
    elif fits:
        result = "it is used"
    else:
        result = "it does not fit this teacher and is skipped (augment.method none)"
    logger.log(
        logging.INFO if fits and not found.sources.is_near_chance else logging.WARNING,
        "prior: %s, against %.1f%% of their sources; %s",
        found.variations.sentence("variations"),
        100 * found.sources.share,
        result,
    )
    return replace(recipe, augment=augment if fits else replace(augment, method="none"))


def is_fitting(found: Agreements) -> bool:
    """Return whether variations with these agreements are of use."""
    sources, variations = found.sources, found.variations
    if sources.is_near_chance:
        return True  # then nothing can be said of the variations
    return not variations.is_near_chance and _above_chance(variations) >= MIN_KEPT * _above_chance(sources)


def _above_chance(agreement: Agreement) -> float:
    return max(0.0, agreement.share - agreement.chance)
