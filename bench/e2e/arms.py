"""The arms by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.clock import Clock
from bench.e2e.made_images import NoiseImages, PriorImages
from bench.published import csd, fast_dfkd
from bench.published.memory import PublishedPair
from engine.cli.resolve import resolve
from engine.config.recipe import Recipe
from engine.generation.shard_generator import ShardGenerator
from engine.recipes.load import load_recipe

PublishedLoop = Callable[[PublishedPair, Clock, int], tuple[int, int]]
"""Trains the student of a pair until the clock ends, from a seed; returns the images and training steps."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A recipe with changes. Without a published loop, the engine's own loop runs it."""

    recipe: str = "fashion-mnist"
    changes: Mapping[str, Any] = field(default_factory=dict)

    def load(self, name: str, seed: int) -> Recipe:
        """Return the resolved recipe."""
        return replace(resolve(load_recipe(self.recipe, {**self.changes, "seed": seed})), name=name)


@dataclass(frozen=True, kw_only=True)
class OwnArm(Arm):
    """An arm of the engine's loop, whose counts are chosen so that it takes the time."""

    makes: type[ShardGenerator] | None = None
    """Makes the images in place of the stages."""
    image_share: float = 0.5
    """Part of the free time for images; the rest is for training."""
    batches: int | None = None
    """Number of batches before the first round, the only ones, instead of a part of the time."""
    keeps_counts: bool = False
    """Whether it has the recipe's own counts, however long they take."""


@dataclass(frozen=True, kw_only=True)
class PublishedArm(Arm):
    """An arm of a published loop, which the clock stops."""

    loop: PublishedLoop


NO_FILTER = {"filter.method": "none", "filter.class_gate": False}
NO_PRIOR = {"augment.method": "none", **NO_FILTER}
NOISE_BATCHES = 32
SMALLER = 64
"""Images of a training step in the variants of the published loops; the learning rate shrinks with it."""


def _fast(settings: fast_dfkd.FastSettings) -> PublishedArm:
    return PublishedArm(loop=lambda pair, clock, _: fast_dfkd.train(pair, clock, settings))


def _csd(settings: csd.CsdSettings) -> PublishedArm:
    return PublishedArm(loop=lambda pair, clock, seed: csd.train(pair, clock, settings, seed))


DEFAULT_ARMS: Mapping[str, Arm] = {
    "fast-dfkd": _fast(fast_dfkd.FastSettings()),
    "csd": _csd(csd.CsdSettings()),
    "ours": OwnArm(),
    "prior-free": OwnArm(recipe="prior-free"),
    "noise": OwnArm(
        changes={**NO_PRIOR, "synthesize.adversary": "none"}, makes=NoiseImages, batches=NOISE_BATCHES
    ),
    "prior": OwnArm(changes={**NO_FILTER, "synthesize.adversary": "none"}, makes=PriorImages),
}
"""Measured unless --arms names others. The first one is the baseline of the others."""
ARMS: Mapping[str, Arm] = {
    **DEFAULT_ARMS,
    "fast-dfkd-64": _fast(fast_dfkd.FastSettings(kd_batch=SMALLER, kd_lr=0.2 * SMALLER / 256)),
    "csd-64": _csd(csd.CsdSettings(kd_batch=SMALLER, kd_lr=0.1 * SMALLER / 128)),
    "synthesis": OwnArm(changes=NO_PRIOR),
    "diffusion": OwnArm(changes=NO_FILTER),
    "diffusion+clip": OwnArm(changes={"filter.class_gate": False}),
    "diffusion+clip+class": OwnArm(),
    "no-prior": OwnArm(changes=NO_PRIOR, keeps_counts=True),
}
"""All arms: also the published loops with small batches, and the default recipe without some of its parts."""
