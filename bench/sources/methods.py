"""The sources of each method on the embedded teacher at equal time, as an independent judge sees them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from bench.sources.judge import Judge
from engine.config.methods import Name
from engine.config.recipe import Recipe
from engine.config.synthesize import SynthesizeConfig
from engine.models.loading import load_classifier
from engine.models.priors import PROMPT, ClipModel, load_clip
from engine.recipes.load import load_recipe
from engine.stages.filter import mean_pairwise_distance
from engine.stages.synthesis.synthesizer import Synthesizer

MEASURED = 1280
"""Most images of a method that are measured."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The sources of one method and seed: shares in [0, 1]."""

    method: str
    seed: int
    steps: int
    """Steps of a batch."""
    images: int
    seconds: float
    teacher: float
    """Share of images whose label is the teacher's top-1."""
    judge: float
    """The same for the judge's top-1."""
    clip: float
    """The same for the zero-shot class of the embedded CLIP model."""
    distance: float
    """Mean of 1 - cosine of CLIP embeddings over pairs of images."""
    distance_in_class: float
    """The same over pairs of one class, averaged over the classes."""

    @property
    def images_per_minute(self) -> float:
        return 60 * self.images / self.seconds


def measure(
    names: Sequence[Name],
    seeds: Sequence[int],
    seconds: float,
    judge: Judge,
    accelerator: Accelerator,
    *,
    steps: int | None = None,
) -> Iterator[Figures]:
    """Make images by each method for `seconds`, a warm-up included and at least one batch, and judge them.

    There is no student, so a method's adversary takes no part. A method whose warm-up and batch do not fit
    in the time takes fewer steps a batch. `steps` replaces the method's own, also those of a warm-up.
    """
    recipe = load_recipe("prior-free")
    clip = load_clip("local-dir:assets/fashion-mnist/open_clip", None, accelerator.device)
    for name in names:
        config = load_recipe("prior-free" if name == "dda" else name).synthesize
        if steps is None:
            config = _fitting(replace(recipe, synthesize=config), seconds, accelerator)
        else:
            config = replace(config.with_steps(steps), warmup_steps=min(config.first_steps, steps))
        for seed in seeds:
            yield _figures(replace(recipe, synthesize=config, seed=seed), seconds, judge, clip, accelerator)


def _fitting(recipe: Recipe, seconds: float, accelerator: Accelerator) -> SynthesizeConfig:
    """Return the recipe's settings, with fewer steps if a warm-up and a batch do not fit in `seconds`."""
    config = recipe.synthesize
    spent = []
    for steps in (2, 6):
        probe = _synthesizer(recipe, replace(config, warmup_steps=0).with_steps(steps), accelerator)
        probe.batch(0, key_stride=1, adversary=None)
        start = time.perf_counter()
        probe.batch(1, key_stride=1, adversary=None)
        spent.append(time.perf_counter() - start)
    per_step = max((spent[1] - spent[0]) / 4, 1e-9)
    fitting = max(1, int(seconds / per_step) - config.first_steps)
    return config if config.chosen.steps <= fitting else config.with_steps(fitting)


def _synthesizer(recipe: Recipe, config: SynthesizeConfig, accelerator: Accelerator) -> Synthesizer:
    return Synthesizer(
        load_classifier(recipe.teacher, "teacher").place(accelerator.device),
        config,
        image_size=recipe.teacher.size,
        seed=recipe.seed,
        accelerator=accelerator,
        views=recipe.synthesis_views,
    )


def _figures(
    recipe: Recipe, seconds: float, judge: Judge, clip: ClipModel, accelerator: Accelerator
) -> Figures:
    texts = clip.embed_texts([PROMPT.format(each) for each in recipe.names])
    start = time.perf_counter()
    synthesizer = _synthesizer(recipe, recipe.synthesize, accelerator)
    images, labels = list[Tensor](), list[Tensor]()
    spent = 0.0
    while not images or spent + (spent / len(images)) / 2 < seconds:
        batch = synthesizer.batch(len(images), key_stride=1, adversary=None)
        images.append(batch.images)
        labels.append(batch.labels)
        spent = time.perf_counter() - start
    count = sum(map(len, labels))
    every, of = torch.cat(images)[-MEASURED:], torch.cat(labels)[-MEASURED:]
    embeddings = torch.cat([clip.embed_images(part).cpu() for part in every.split(256)])
    with torch.no_grad():
        seen = [
            synthesizer.teacher(part.to(accelerator.device).float() / 255).argmax(1)
            for part in every.split(256)
        ]
    return Figures(
        method=recipe.synthesize.method,
        seed=recipe.seed,
        steps=recipe.synthesize.chosen.steps,
        images=count,
        seconds=spent,
        teacher=_share(torch.cat(seen), of),
        judge=_share(judge.classes(every), of),
        clip=_share((embeddings @ texts.cpu().T).argmax(1), of),
        distance=mean_pairwise_distance(embeddings),
        distance_in_class=_within_classes(embeddings, of),
    )


def _share(classes: Tensor, labels: Tensor) -> float:
    return (classes.cpu() == labels).double().mean().item()


def _within_classes(embeddings: Tensor, labels: Tensor) -> float:
    groups = [embeddings[labels == label] for label in labels.unique()]
    distances = torch.tensor([mean_pairwise_distance(group) for group in groups])
    return distances[distances.isfinite()].mean().item()
