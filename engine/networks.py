"""The networks of a recipe: loaded once, described for export, and the frozen ones open in a runtime."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from engine.config.compute import Runtime
from engine.config.recipe import Recipe
from engine.models.classifier import Classifier
from engine.models.inverting import require_invertible
from engine.models.latent_diffusion import LatentDiffusion
from engine.models.loading import build_classifier, load_classifier, require_feature
from engine.models.priors import ClipModel, DiffusionPrior, load_clip, load_prior
from engine.runtime.base import Executable, RuntimeOptions, runtime_options
from engine.runtime.batching import batch_sizes
from engine.runtime.networks import OpenPrior, classifier_spec, clip_spec, open_clip, open_prior, prior_spec
from engine.runtime.open import open_runtime, torch_precision
from engine.runtime.torch import FusedClassifier
from engine.seeding import derive_seed, seeded
from engine.stages.augment import class_tokens
from engine.stages.solver import check_solver
from export.spec import DTYPES, NetworkSpec, Precision


@dataclass(frozen=True, kw_only=True)
class LoadedPair:
    """Teacher and student on one device, the teacher frozen and in eval mode."""

    teacher: Classifier
    student: Classifier


@dataclass(frozen=True, kw_only=True)
class LoadedNetworks(LoadedPair):
    """The pair and the networks that make and filter variations, all frozen."""

    prior: DiffusionPrior | None
    clip: ClipModel | None
    class_tokens: Tensor | None
    """float32 [C, D], for augment.class_condition text."""


@dataclass(frozen=True, kw_only=True)
class OpenPair(LoadedPair):
    """The pair, with the teacher also open in the run's runtime."""

    teacher_forward: Executable
    """The teacher's logits, and the feature map that distillation uses by its path."""


@dataclass(frozen=True, kw_only=True)
class OpenNetworks(OpenPair):
    """The pair, prior and CLIP open in the run's runtime."""

    prior: OpenPrior | None
    clip: ClipModel | None
    class_tokens: Tensor | None
    """float32 [C, D], for augment.class_condition text."""


def load_pair(recipe: Recipe, device: torch.device) -> LoadedPair:
    """Load the teacher and initialize the student from the seed.

    Raises UserError, which names the setting and the file, for a network that does not load or fit.
    """
    teacher = load_classifier(recipe.teacher, "teacher").place(device)
    with seeded(derive_seed(recipe.seed, "student"), torch.device("cpu")):
        student = build_classifier(recipe.student, "student")
    return LoadedPair(teacher=teacher, student=student.place(device))


def load(recipe: Recipe, device: torch.device) -> LoadedNetworks:
    """Load all networks of the recipe. Raises UserError as `load_pair` does."""
    pair = load_pair(recipe, device)
    require_invertible(pair.teacher, recipe.teacher.image_size, recipe.synthesize.w_bn)
    clip = load_clip(recipe.filter.model, recipe.filter.pretrained, device) if recipe.filter.model else None
    prior = load_prior(recipe.augment.prior, device) if recipe.augment.method == "variation" else None
    if prior is not None:
        check_solver(prior, recipe.augment)
    tokens = None
    if prior is not None and clip is not None and recipe.augment.class_condition == "text":
        width = prior.unet.config.cross_attention_dim
        tokens = class_tokens(clip, recipe.class_names, cross_attention_dim=width)
    return LoadedNetworks(
        teacher=pair.teacher, student=pair.student, prior=prior, clip=clip, class_tokens=tokens
    )


def spec(
    name: str, recipe: Recipe, network: Classifier | ClipModel | LatentDiffusion, runtime: Runtime
) -> NetworkSpec:
    """Return the spec of the loaded `network`: its inputs, outputs and batch sizes in a run of the recipe.

    `name`: teacher, student, clip or one of the prior's `engine.runtime.networks.NETWORKS`.
    """
    if isinstance(network, ClipModel):
        return clip_spec(network, rows=recipe.filter.images_at_once, runtime=runtime)
    if isinstance(network, LatentDiffusion):
        return prior_spec(name, network, recipe.augment, runtime)
    feature_paths, rows = [], recipe.filter.images_at_once
    if name == "teacher":
        feature_paths = [require_feature(network, name)] if recipe.distill.w_feature > 0 else []
        rows = max(recipe.distill.batch_size, rows)
    size = recipe.teacher.image_size
    return classifier_spec(name, network, feature_paths, image_size=size, batches=batch_sizes(runtime, rows))


def open_pair(recipe: Recipe, loaded: LoadedPair, accelerator: Accelerator) -> OpenPair:
    """Open the teacher in the runtime of a resolved recipe.

    Raises ExportError if the runtime cannot run it.
    """
    options = runtime_options(recipe.compute, recipe.tensorrt, accelerator.device)
    return OpenPair(
        teacher=loaded.teacher,
        student=loaded.student,
        teacher_forward=_open_teacher(recipe, loaded.teacher, accelerator, options),
    )


def open(
    recipe: Recipe,
    loaded: LoadedNetworks,
    accelerator: Accelerator,
    threads: Mapping[str, int] | None = None,
) -> OpenNetworks:
    """Open teacher, prior and CLIP in the runtime of a resolved recipe.

    `threads`: CPU threads by stage, by default `compute.threads` for each.

    Raises ExportError if the runtime cannot run one of them.
    """
    options = runtime_options(recipe.compute, recipe.tensorrt, accelerator.device)
    for_augment = replace(options, threads=threads["augment"]) if threads else options
    for_filter = replace(options, threads=threads["filter"]) if threads else options
    prior, clip = loaded.prior, loaded.clip
    return OpenNetworks(
        teacher=loaded.teacher,
        student=loaded.student,
        teacher_forward=_open_teacher(recipe, loaded.teacher, accelerator, for_filter),
        prior=None if prior is None else open_prior(prior, recipe.augment, for_augment),
        clip=None
        if clip is None
        else open_clip(clip, spec("clip", recipe, clip, options.runtime), for_filter),
        class_tokens=loaded.class_tokens,
    )


def _open_teacher(
    recipe: Recipe, teacher: Classifier, accelerator: Accelerator, options: RuntimeOptions
) -> Executable:
    """Open the teacher; in runtime torch as a fused copy in the first precision that passes its check."""
    described = spec("teacher", recipe, teacher, options.runtime)
    if options.runtime != "torch":
        return open_runtime(described, options)

    def fused(precision: Precision) -> Executable:
        return FusedClassifier(teacher, described.outputs[1:], accelerator, dtype=DTYPES[precision])

    return fused(torch_precision(described, options, fused))
