"""The networks of a run, loaded once and shared by its stages."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from engine.models.classifier import Classifier
from engine.models.loading import build_classifier, load_classifier, require_batch_norm
from engine.models.priors import ClipModel, DiffusionPrior, load_clip, load_prior
from engine.recipe import Recipe
from engine.seeding import derive_seed, seeded
from engine.stages.augment import class_tokens


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Everything on the accelerator's device; all but the student frozen and in eval mode."""

    teacher: Classifier
    student: Classifier
    prior: DiffusionPrior | None
    clip: ClipModel | None
    class_tokens: Tensor | None  # float32 [C, D], for augment.class_condition text


def assemble(recipe: Recipe, accelerator: Accelerator) -> Assembly:
    """Loads the teacher and the priors and draws the student's weights from the seed.

    Raises UserError that names the field and the file for whatever cannot be loaded or does not fit.
    """
    device = accelerator.device
    teacher = load_classifier(recipe.teacher, "teacher")
    if recipe.synthesize.w_bn > 0:
        require_batch_norm(teacher, "synthesize.w_bn")
    with seeded(derive_seed(recipe.seed, "student"), torch.device("cpu")):
        student = build_classifier(recipe.student, "student")
    clip = load_clip(recipe.filter.model, recipe.filter.pretrained, device) if recipe.filter.model else None
    prior = load_prior(recipe.augment.prior, device) if recipe.augment.method == "variation" else None
    tokens = None
    if prior is not None and clip is not None and recipe.augment.class_condition == "text":
        width = prior.unet.config.cross_attention_dim
        tokens = class_tokens(clip, recipe.class_names, cross_attention_dim=width)
    return Assembly(
        teacher=teacher.to(device).to(memory_format=torch.channels_last),
        student=student.to(device).to(memory_format=torch.channels_last),
        prior=prior,
        clip=clip,
        class_tokens=tokens,
    )
