"""Load the networks of a recipe, describe them for export, and open the frozen ones in a runtime."""

import logging
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
from engine.models.loading import aligned_paths, build_classifier, load_classifier
from engine.models.priors import PROMPT, ClipModel, DiffusionPrior, load_clip, load_prior
from engine.runtime.base import Executable, RuntimeOptions, runtime_options
from engine.runtime.batching import batch_sizes
from engine.runtime.networks import OpenPrior, classifier_spec, clip_spec, open_clip, open_prior, prior_spec
from engine.runtime.open import open_runtime, torch_precision
from engine.runtime.torch import FusedClassifier
from engine.seeding import derive_seed, seeded
from engine.stages.augment import class_tokens
from engine.stages.solver import check_solver
from export.spec import DTYPES, NetworkSpec, Precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedPair:
    """Teacher and student on one device. The teacher is frozen and in eval mode."""

    teacher: Classifier
    student: Classifier


@dataclass(frozen=True, kw_only=True)
class LoadedNetworks(LoadedPair):
    """The pair, and the frozen networks that generate and filter variations."""

    prior: DiffusionPrior | None
    clip: ClipModel | None
    class_tokens: Tensor | None
    """float32 [C, D]; None unless augment.class_condition is text."""
    class_texts: Tensor | None
    """Unit embeddings of the class names, float32 [C, D] on the CPU; None unless a stage uses them."""


@dataclass(frozen=True, kw_only=True)
class OpenPair(LoadedPair):
    """The pair, with the teacher also open in a runtime."""

    teacher_forward: Executable
    """Computes the teacher's logits and, under its path, each feature map that distillation aligns."""


@dataclass(frozen=True, kw_only=True)
class OpenNetworks(OpenPair):
    """The pair, with the teacher, prior and CLIP open in a runtime."""

    prior: OpenPrior | None
    clip: ClipModel | None
    class_tokens: Tensor | None
    """float32 [C, D]; None unless augment.class_condition is text."""
    class_texts: Tensor | None
    """Unit embeddings of the class names, float32 [C, D] on the CPU; None unless a stage uses them."""


def load_pair(recipe: Recipe, device: torch.device, *, level: int = logging.INFO) -> LoadedPair:
    """Load the teacher and initialize the student from the seed. Each gets a log line of `level`.

    Raises UserError that names the setting and the file if a network does not load or fit.
    """
    logger.log(level, "loading the teacher, %s", recipe.teacher.name)
    teacher = load_classifier(recipe.teacher, "teacher", taps=recipe.distill.teacher_taps).place(device)
    logger.log(level, "building the student, %s", recipe.student.name)
    with seeded(derive_seed(recipe.seed, "student"), torch.device("cpu")):
        student = build_classifier(recipe.student, "student", taps=recipe.distill.student_taps)
    _log_feature(level, "teacher", teacher)
    _log_feature(level, "student", student)
    return LoadedPair(teacher=teacher, student=student.place(device))


def _log_feature(level: int, section: str, classifier: Classifier) -> None:
    """Log which feature map was found, if the recipe and the network name none."""
    path, layout = classifier.feature_path, classifier.feature_layout
    if path is None or layout is None or not classifier.feature_is_found:
        return
    height, width = layout.grid
    logger.log(level, "%s.feature is `%s`, %dx%d", section, path.removeprefix("network."), height, width)


def load(recipe: Recipe, device: torch.device, *, level: int = logging.INFO) -> LoadedNetworks:
    """Load all networks of the recipe on one device, with log lines and errors as `load_pair`."""
    pair = load_pair(recipe, device, level=level)
    require_invertible(pair.teacher, recipe.teacher.size, recipe.synthesize, level=level)
    clip = prior = None
    if recipe.uses_clip:
        logger.log(level, "loading CLIP, %s", recipe.filter.model)
        clip = load_clip(recipe.filter.model, recipe.filter.pretrained, device)
    if recipe.augment.method == "variation":
        logger.log(level, "loading the prior, %s", recipe.augment.prior)
        prior = load_prior(recipe.augment.prior, device)
        check_solver(prior, recipe.augment)
    tokens = None
    if prior is not None and clip is not None and recipe.augment.class_condition == "text":
        width = prior.unet.config.cross_attention_dim
        tokens = class_tokens(clip, recipe.names, cross_attention_dim=width)
    texts = None
    if clip is not None and recipe.uses_class_texts:
        texts = clip.embed_texts([PROMPT.format(name) for name in recipe.names]).cpu()
    return LoadedNetworks(
        teacher=pair.teacher,
        student=pair.student,
        prior=prior,
        clip=clip,
        class_tokens=tokens,
        class_texts=texts,
    )


def spec(
    name: str, recipe: Recipe, network: Classifier | ClipModel | LatentDiffusion, runtime: Runtime
) -> NetworkSpec:
    """Describe the loaded `network` for a run of the recipe: inputs, outputs and batch sizes.

    `name` is teacher, student, clip or one of `engine.runtime.networks.NETWORKS`.
    """
    if isinstance(network, ClipModel):
        return clip_spec(network, rows=recipe.filter.images_at_once, runtime=runtime)
    if isinstance(network, LatentDiffusion):
        return prior_spec(name, network, recipe.augment, runtime)
    feature_paths, rows = list[str](), recipe.filter.images_at_once
    if name == "teacher":
        if recipe.distill.w_feature > 0:
            feature_paths = list(dict.fromkeys(aligned_paths(network, name)))
        rows = max(recipe.distill.batch_size, rows)
    size = recipe.teacher.size
    return classifier_spec(name, network, feature_paths, image_size=size, batches=batch_sizes(runtime, rows))


def open_pair(recipe: Recipe, loaded: LoadedPair, accelerator: Accelerator) -> OpenPair:
    """Open the teacher in the runtime of a resolved recipe. Raises ExportError if that is impossible."""
    options = runtime_options(recipe.compute, recipe.tensorrt, accelerator.device)
    logger.info("opening the teacher in %s %s", options.runtime, options.precision)
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
    *,
    level: int = logging.INFO,
) -> OpenNetworks:
    """Open teacher, prior and CLIP in the runtime of a resolved recipe.

    `threads` gives the CPU threads by stage, by default `compute.threads` for each. Each network gets a log
    line of `level`. Raises ExportError if the
    runtime cannot run one of the networks.
    """
    options = runtime_options(recipe.compute, recipe.tensorrt, accelerator.device)
    for_augment = replace(options, threads=threads["augment"]) if threads else options
    for_filter = replace(options, threads=threads["filter"]) if threads else options
    opening = f"opening %s in {options.runtime} {options.precision}"
    logger.log(level, opening, "the teacher")
    teacher_forward = _open_teacher(recipe, loaded.teacher, accelerator, for_filter)
    prior = clip = None
    if loaded.prior is not None:
        logger.log(level, opening, "the prior")
        prior = open_prior(loaded.prior, recipe.augment, for_augment)
    if loaded.clip is not None:
        logger.log(level, opening, "CLIP")
        clip = open_clip(loaded.clip, spec("clip", recipe, loaded.clip, options.runtime), for_filter)
    return OpenNetworks(
        teacher=loaded.teacher,
        student=loaded.student,
        teacher_forward=teacher_forward,
        prior=prior,
        clip=clip,
        class_tokens=loaded.class_tokens,
        class_texts=loaded.class_texts,
    )


def _open_teacher(
    recipe: Recipe, teacher: Classifier, accelerator: Accelerator, options: RuntimeOptions
) -> Executable:
    """Open the teacher; in torch, as a fused copy in the first precision that passes the parity check."""
    teacher_spec = spec("teacher", recipe, teacher, options.runtime)
    if options.runtime != "torch":
        return open_runtime(teacher_spec, options)

    def fuse(precision: Precision) -> Executable:
        return FusedClassifier(teacher, teacher_spec.outputs[1:], accelerator, dtype=DTYPES[precision])

    return fuse(torch_precision(teacher_spec, options, fuse))
