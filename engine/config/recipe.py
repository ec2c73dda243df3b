"""The recipe of an experiment: one configuration section for each part of the engine."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import yaml

from engine.config.augment import AugmentConfig
from engine.config.checked import Checked
from engine.config.classifier import ClassifierConfig
from engine.config.compute import ComputeConfig
from engine.config.decides import decides, sections
from engine.config.distill import DistillConfig
from engine.config.evaluate import EvaluateConfig
from engine.config.feed import FeedConfig
from engine.config.filter import FilterConfig
from engine.config.schedule import ScheduleConfig
from engine.config.storage import StorageConfig
from engine.config.synthesize import SynthesizeConfig
from engine.config.tensorrt import TensorRtConfig
from engine.config.views import StoredViews, Views

CONFIG = "config.yaml"
"""File name of the recipe in a run's folder."""

MAX_WEIGHT_RATIO = 1_000_000
"""Maximum ratio of two classes' weights."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """The settings of an experiment."""

    name: str = field(metadata=decides())
    """Name of the recipe and of the run's folder; by default the name of the recipe's file."""
    seed: int = field(default=0, metadata=decides("images"))
    """Seed of every random draw."""
    class_names: tuple[str, ...] | None = field(default=None, metadata=decides("images", "student"))
    """Names of the classes, in the order of the teacher's logits; null takes what the teacher's own
    configuration says, else the numbers from 0."""
    compute: ComputeConfig = field(default=ComputeConfig(), metadata=decides("execution"))
    """Device, precision, runtime and threads"""
    tensorrt: TensorRtConfig = field(default=TensorRtConfig(), metadata=decides("execution"))
    """How TensorRT's engines are built"""
    teacher: ClassifierConfig = field(metadata=decides("images", "student"))
    """The trained classifier to distill from"""
    student: ClassifierConfig = field(default=ClassifierConfig(), metadata=decides("student"))
    """The classifier to train"""
    schedule: ScheduleConfig = field(default=ScheduleConfig(), metadata=decides("student"))
    """Numbers of batches, rounds and training steps"""
    synthesize: SynthesizeConfig = field(default=SynthesizeConfig(), metadata=decides("images"))
    """Synthesis of source images by inverting the teacher"""
    augment: AugmentConfig = field(default=AugmentConfig(), metadata=decides("images"))
    """Variations of the sources by a diffusion prior"""
    filter: FilterConfig = field(default=FilterConfig(), metadata=decides("images"))
    """Which variations are kept"""
    storage: StorageConfig = field(default=StorageConfig(), metadata=decides("images"))
    """Format of the bank's images"""
    feed: FeedConfig = field(default=FeedConfig(), metadata=decides("execution"))
    """How the bank's images reach the student"""
    distill: DistillConfig = field(default=DistillConfig(), metadata=decides("student"))
    """Training of the student on the bank"""
    evaluate: EvaluateConfig = field(default=EvaluateConfig(), metadata=decides("student"))
    """The test set"""

    def faults(self) -> Iterator[str]:
        yield from self.teacher.faults("teacher")
        yield from self.student.faults("student")
        for name in ("weights", "weights_key"):
            if (given := getattr(self.student, name)) is not None:
                yield f"student.{name} is {given}, but a student starts from random weights; set it to null"
        for name in self.synthesize.class_weights or ():
            if not isinstance(name, str):
                yield f"synthesize.class_weights: {name!r} is not text; write the class in quotes"

    def contradictions(self) -> Iterator[str]:
        yield from self._class_contradictions()
        yield from self._size_contradictions()
        yield from self._wrong_class_weights()
        if self.augment.class_condition == "text" and not self.filter.model:
            yield (
                "augment.class_condition is text, which needs the text tower of filter.model, but no model "
                "is set; give an open_clip model, or set augment.class_condition to none"
            )

    def _class_contradictions(self) -> Iterator[str]:
        counts = {
            "class_names has": None if self.class_names is None else len(self.class_names),
            "teacher.num_classes is": self.teacher.num_classes,
        }
        for section in ("teacher", "student"):
            given = getattr(self, section).num_classes
            for what, expected in counts.items():
                if given is not None and expected is not None and given != expected:
                    yield f"{section}.num_classes is {given}, but {what} {expected}; make them agree"
                    break

    def _size_contradictions(self) -> Iterator[str]:
        if self.teacher.image_size is None:
            return
        if self.student.image_size is not None and self.student.size != self.teacher.size:
            yield (
                f"student.image_size is {self.student.size_text}, but teacher.image_size is"
                f" {self.teacher.size_text}, and both see the same images; make them agree"
            )
        for section in ("distill", "synthesize"):
            padding = getattr(self, section).crop_padding
            if padding is not None and padding >= min(self.teacher.size):
                yield (
                    f"{section}.crop_padding is {padding}, but teacher.image_size is"
                    f" {self.teacher.size_text}; lower it"
                )

    def _wrong_class_weights(self) -> Iterator[str]:
        if self.class_names is None:
            return
        given, known = self.synthesize.class_weights, set(self.class_names)
        unknown = [name for name in given or () if isinstance(name, str) and name not in known]
        for name in unknown:
            near = get_close_matches(name, self.class_names, 1)
            guess = f"did you mean '{near[0]}'?" if near else "give names of class_names"
            yield f"synthesize.class_weights: no class '{name}'; {guess}"
        weights = [weight for weight in self.class_weights or (1.0,) if weight > 0]
        if unknown:
            return  # these weights may be meant for classes that have none
        if not weights:
            yield "synthesize.class_weights leaves no class; set at least one weight above 0"
        elif max(weights) > MAX_WEIGHT_RATIO * min(weights):
            yield (
                f"synthesize.class_weights: {max(weights):g} is more than {MAX_WEIGHT_RATIO:,} times another "
                f"class's {min(weights):g}; set the weight of a class that you do not want to 0"
            )

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """Weight of each class in the draw, in the order of `class_names`; None draws all equally often."""
        given = self.synthesize.class_weights
        return None if given is None else tuple(given.get(name, 1.0) for name in self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """`class_names` of a resolved recipe."""
        assert self.class_names is not None
        return self.class_names

    @property
    def uses_clip(self) -> bool:
        """Whether a stage of a resolved recipe runs the CLIP model."""
        has_variations = self.augment.method != "none"
        by_text = self.augment.class_condition == "text"
        return has_variations and (self.filter.method == "clip" or by_text)

    @property
    def uses_class_texts(self) -> bool:
        """Whether a stage of a resolved recipe uses the class names' embeddings, if it has CLIP."""
        return self.filter.needs_texts or self.synthesize.chosen.source == "noisy_layer"

    @property
    def fields(self) -> dict[str, Any]:
        """All settings as nested mappings, with the views of synthesis filled in from `distill`."""
        fields = asdict(self)
        fields["synthesize"] |= asdict(self.synthesis_views)
        return fields

    @property
    def auto_batches(self) -> tuple[str, ...]:
        """Names of the sections whose `micro_batch` is auto."""
        return tuple(name for name in ("augment", "filter") if getattr(self, name).micro_batch == "auto")

    @property
    def is_resolved(self) -> bool:
        """Whether nothing is left to read from the networks or to choose for the machine."""
        on_machine = self.compute.is_resolved and self.feed.is_resolved and not self.auto_batches
        return self.is_read and on_machine and self.augment.method != "auto"

    @property
    def is_read(self) -> bool:
        """Whether nothing is left to read from the networks."""
        return self.is_teacher_read and self.student.is_resolved and bool(self.student.name)

    @property
    def is_teacher_read(self) -> bool:
        """Whether nothing is left to read from the teacher."""
        is_open = self.class_names is None or self.teacher.has_unread_weights
        return self.teacher.is_resolved and not is_open

    @property
    def synthesis_views(self) -> Views:
        """Random views of a synthesized image that the teacher sees."""
        distill = self.distill
        return self.synthesize.views(default=Views(flip=distill.flip, crop_padding=distill.crop_padding))

    @property
    def stored_views(self) -> StoredViews | None:
        """The views whose teacher outputs are stored, or None."""
        views = self.distill.views_of(self.seed)
        return views if isinstance(views, StoredViews) else None


def derived(recipe: Recipe) -> Recipe:
    """Return the recipe with a value for each open setting that its other settings decide.

    The student takes the teacher's classes, channels, size and normalization; mean and std only once its
    channels are known. A stage without a model is left out. Synthesis takes what its method decides.
    """
    teacher, student, augment, chosen = recipe.teacher, recipe.student, recipe.augment, recipe.filter
    channels = student.in_channels or teacher.in_channels
    like = teacher if channels is None else teacher.for_channels(channels)
    names = ("num_classes", "in_channels", "image_size", *(("mean", "std") if channels else ()))
    for name in names:
        if getattr(student, name) is None and getattr(teacher, name) is not None:
            student = replace(student, **{name: getattr(like, name)})
    if augment.method == "auto" and not augment.prior:
        augment = replace(augment, method="none")
    if chosen.method == "auto":
        chosen = replace(chosen, method="clip" if chosen.model else "none")
    synthesize = recipe.synthesize.resolved()
    return replace(recipe, student=student, synthesize=synthesize, augment=augment, filter=chosen)


OF_MACHINE_SECTIONS = sections(Recipe, "execution")
"""Sections that a later command on a bank resolves again, for its own machine."""


def with_default_batches(recipe: Recipe) -> Recipe:
    """Return the recipe with the default size in place of each `micro_batch` that is auto."""
    for name in recipe.auto_batches:
        section = getattr(recipe, name)
        recipe = replace(recipe, **{name: replace(section, micro_batch=type(section).micro_batch)})
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML with all defaults; `load_recipe` reads it back."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(recipe))), sort_keys=False, width=110)


def differences(old: Recipe, new: Recipe) -> Iterator[str]:
    """Yield `key: old value -> new value` for each setting that differs."""
    before, after = flatten(old.fields), flatten(new.fields)
    for key in before | after:
        if before.get(key) != after.get(key):
            yield f"{key}: {before.get(key)!r} -> {after.get(key)!r}"


def of_earlier_version(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that this or an earlier version wrote, of one recipe or several, with today's keys."""
    current = {
        name: of_earlier_version(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
    }
    synthesize = current.get("synthesize")
    if isinstance(synthesize, dict) and synthesize and "method" not in synthesize:
        current["synthesize"] = {"method": "dda-paper", **synthesize}
    evaluate = current.get("evaluate")
    if isinstance(evaluate, dict) and "dataset" in evaluate:
        dataset = evaluate.pop("dataset")
        current["evaluate"] = {"data": None if dataset == "none" else dataset, **evaluate}
    return current


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
