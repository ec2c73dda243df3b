"""The networks of a run, loaded once and shared by its stages."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from engine.lanes import Lane, one_lane, threads_of
from engine.models.classifier import Classifier
from engine.models.frozen import Frozen, frozen
from engine.models.inverting import require_invertible
from engine.models.loading import build_classifier, load_classifier, require_feature
from engine.models.priors import ClipModel, load_clip, load_prior
from engine.recipe import Recipe
from engine.runtime.classifier import classifier_spec, open_classifier
from engine.runtime.clip import open_clip
from engine.runtime.opening import torch_precision
from engine.runtime.place import Place, open_place
from engine.runtime.prior import OpenPrior, open_prior
from engine.runtime.sizes import batches
from engine.seeding import derive_seed, seeded
from engine.stages.augment import class_tokens
from engine.stages.solver import check_solver
from export.spec import DTYPES, Precision


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Teacher and student on the accelerator's device, the teacher frozen and in eval mode."""

    teacher: Classifier
    ask_teacher: Frozen
    """The teacher in the run's runtime, with the feature map that distillation taps."""
    student: Classifier


@dataclass(frozen=True, kw_only=True)
class Assembly(Pair):
    """The pair and the priors, frozen, too."""

    prior: OpenPrior | None
    clip: ClipModel | None
    class_tokens: Tensor | None  # float32 [C, D], for augment.class_condition text
    lanes: tuple[Lane, ...]
    """The steps that may run side by side; the networks of each are open for its threads."""


def assemble_pair(recipe: Recipe, accelerator: Accelerator, say: Callable[[str], None]) -> Pair:
    """Loads the teacher and opens it in the run's runtime, draws the student from the seed.

    `say` gets a line for each graph or engine that is built. Raises UserError that names the field and the
    file for whatever cannot be loaded or does not fit, ExportError for what the runtime cannot run.
    """
    return _pair(recipe, accelerator, open_place(recipe.compute, recipe.tensorrt, accelerator.device, say))


def assemble(
    recipe: Recipe,
    accelerator: Accelerator,
    say: Callable[[str], None],
    lanes: tuple[Lane, ...] | None = None,
) -> Assembly:
    """As `assemble_pair`, with the priors of the recipe opened in their runtime; `lanes`: by default one."""
    device = accelerator.device
    lanes = lanes or one_lane(recipe.compute)
    place = open_place(recipe.compute, recipe.tensorrt, device, say)
    for_augment = replace(place, threads=threads_of(lanes, "augment"))
    for_filter = replace(place, threads=threads_of(lanes, "filter"))
    pair = _pair(recipe, accelerator, for_filter)
    require_invertible(pair.teacher, recipe.teacher.image_size, recipe.synthesize.w_bn)
    clip = load_clip(recipe.filter.model, recipe.filter.pretrained, device) if recipe.filter.model else None
    prior = load_prior(recipe.augment.prior, device) if recipe.augment.method == "variation" else None
    if prior is not None:
        check_solver(prior, recipe.augment)
    tokens = None
    if prior is not None and clip is not None and recipe.augment.class_condition == "text":
        width = prior.unet.config.cross_attention_dim
        tokens = class_tokens(clip, recipe.class_names, cross_attention_dim=width)
    return Assembly(
        teacher=pair.teacher,
        ask_teacher=pair.ask_teacher,
        student=pair.student,
        prior=open_prior(prior, recipe.augment, for_augment) if prior is not None else None,
        clip=open_clip(clip, recipe.filter.images_at_once, for_filter) if clip is not None else None,
        class_tokens=tokens,
        lanes=lanes,
    )


def _pair(recipe: Recipe, accelerator: Accelerator, place: Place) -> Pair:
    device = accelerator.device
    teacher = load_classifier(recipe.teacher, "teacher").place(device)
    with seeded(derive_seed(recipe.seed, "student"), torch.device("cpu")):
        student = build_classifier(recipe.student, "student")
    return Pair(
        teacher=teacher,
        ask_teacher=_ask(teacher, recipe, accelerator, place),
        student=student.place(device),
    )


def _ask(teacher: Classifier, recipe: Recipe, accelerator: Accelerator, place: Place) -> Frozen:
    taps = [require_feature(teacher, "teacher")] if recipe.distill.w_feature > 0 else []
    rows = max(recipe.distill.batch_size, recipe.filter.images_at_once)
    spec = classifier_spec(
        "teacher",
        teacher,
        taps,
        image_size=recipe.teacher.image_size,
        batches=batches(place.runtime, rows),
    )
    if place.runtime != "torch":
        return open_classifier(spec, place)

    def fused(precision: Precision) -> Frozen:
        return frozen(teacher, taps, accelerator, dtype=DTYPES[precision])

    def run(ask: Frozen, images: Tensor) -> dict[str, Tensor]:
        logits, features = ask(images)
        return spec.named(output.float() for output in (logits, *features))

    return fused(torch_precision(spec, place, lambda tried: partial(run, fused(tried))))
