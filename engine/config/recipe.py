"""One experiment: a configuration section for each part of the engine."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import yaml

from engine.config.augment import AugmentConfig
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
from engine.config.views import Views
from engine.errors import UserError

CONFIG = "config.yaml"
"""Name, in a run's folder, of the recipe it was made with."""

LARGEST_RATIO = 1_000_000
"""Of two classes' weights."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run's result."""

    name: str = field(metadata=decides())
    """Name of the recipe, and of the run's folder; the file's name unless given."""
    seed: int = field(default=0, metadata=decides("images"))
    """Seed of every random draw."""
    class_names: tuple[str, ...] = field(metadata=decides("images", "student"))
    """Name of each class, in the order of the teacher's logits."""
    compute: ComputeConfig = field(default=ComputeConfig(), metadata=decides("execution"))
    """Device, precision and threads"""
    tensorrt: TensorRtConfig = field(default=TensorRtConfig(), metadata=decides("execution"))
    """How TensorRT's engines are built"""
    teacher: ClassifierConfig = field(metadata=decides("images", "student"))
    """The trained classifier to distill from"""
    student: ClassifierConfig = field(metadata=decides("student"))
    """The classifier to train"""
    schedule: ScheduleConfig = field(default=ScheduleConfig(), metadata=decides("student"))
    """How much of each kind of work"""
    synthesize: SynthesizeConfig = field(metadata=decides("images"))
    """Images from the teacher alone"""
    augment: AugmentConfig = field(metadata=decides("images"))
    """Variations of the synthesized images by a diffusion prior"""
    filter: FilterConfig = field(metadata=decides("images"))
    """Which variations are kept"""
    storage: StorageConfig = field(default=StorageConfig(), metadata=decides("images"))
    """The files of the bank's images"""
    feed: FeedConfig = field(default=FeedConfig(), metadata=decides("execution"))
    """From the files to the student"""
    distill: DistillConfig = field(metadata=decides("student"))
    """Training of the student on the bank"""
    evaluate: EvaluateConfig = field(default=EvaluateConfig(), metadata=decides("student"))
    """The test set"""

    def __post_init__(self) -> None:
        num_classes = len(self.class_names)
        for section in ("teacher", "student"):
            getattr(self, section).check(section)
            given = getattr(self, section).num_classes
            if given != num_classes:
                raise UserError(
                    f"{section}.num_classes is {given} but class_names has {num_classes}; make them agree"
                )
        if self.student.image_size != self.teacher.image_size:
            raise UserError(
                f"student.image_size is {self.student.image_size} but teacher.image_size is"
                f" {self.teacher.image_size}; student and teacher see the same images, make them agree"
            )
        if self.evaluate.dataset == "fashion-mnist" and (num_classes, self.teacher.image_size) != (10, 32):
            raise UserError(
                "evaluate.dataset fashion-mnist has 10 classes of 32x32 images, the teacher has "
                f"{num_classes} of {self.teacher.image_size}x{self.teacher.image_size}; "
                "set evaluate.dataset to none"
            )
        if self.teacher.image_size % 4:
            raise UserError(
                f"teacher.image_size must be a multiple of 4, which the generator doubles twice,"
                f" got {self.teacher.image_size}"
            )
        self._check_views()
        for name in ("weights", "weights_key"):
            if (given := getattr(self.student, name)) is not None:
                raise UserError(f"student.{name} is {given}; a student starts from random weights, set null")
        self._check_class_weights()
        if self.augment.class_condition == "text" and not self.filter.model:
            raise UserError(
                "augment.class_condition text needs the text tower of filter.model, which is empty; "
                "give an open_clip model, or set augment.class_condition to none"
            )

    def _check_class_weights(self) -> None:
        given, known = self.synthesize.class_weights, set(self.class_names)
        for name in given or ():
            if not isinstance(name, str):
                raise UserError(f"synthesize.class_weights: {name!r} is not text; write the class in quotes")
            if name not in known:
                near = get_close_matches(name, self.class_names, 1)
                guess = f"did you mean '{near[0]}'?" if near else "give names of class_names"
                raise UserError(f"synthesize.class_weights: no class '{name}'; {guess}")
        weights = [weight for weight in self.class_weights or (1.0,) if weight > 0]
        if not weights:
            raise UserError("synthesize.class_weights leaves no class; give one class a weight above 0")
        if max(weights) > LARGEST_RATIO * min(weights):
            raise UserError(
                f"synthesize.class_weights: {max(weights):g} is more than {LARGEST_RATIO:,} times another "
                f"class's {min(weights):g}; give 0 to a class that you do not want"
            )

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """How often each class is drawn, in the order of `class_names`; None: all alike."""
        given = self.synthesize.class_weights
        return None if given is None else tuple(given.get(name, 1.0) for name in self.class_names)

    @property
    def fields(self) -> dict[str, Any]:
        """All settings as nested mappings; views of synthesis that follow `distill` are written out."""
        fields = asdict(self)
        fields["synthesize"] |= asdict(self.synthesis_views)
        return fields

    @property
    def has_auto_batch(self) -> bool:
        """Whether the size of a micro-batch is still `auto`."""
        return "auto" in (self.augment.micro_batch, self.filter.micro_batch)

    @property
    def is_resolved(self) -> bool:
        """Whether `engine.cli.resolve` has given every `auto` and null a value."""
        return self.compute.is_resolved and self.feed.kind != "auto" and not self.has_auto_batch

    @property
    def synthesis_views(self) -> Views:
        """What the teacher sees of an image that is synthesized."""
        return self.synthesize.views(otherwise=self.distill.views)

    def _check_views(self) -> None:
        size = self.teacher.image_size
        for section in ("distill", "synthesize"):
            padding = getattr(self, section).crop_padding
            if padding is not None and padding >= size:
                raise UserError(
                    f"{section}.crop_padding is {padding}, but teacher.image_size is {size}; set it lower"
                )


OF_MACHINE_SECTIONS = sections(Recipe, "execution")
"""Sections of a bank's recipe that a later command resolves for itself."""


def with_default_batches(recipe: Recipe) -> Recipe:
    """Return the recipe with the default size for each micro-batch that is `auto`."""
    augment, filter = recipe.augment, recipe.filter
    if augment.micro_batch == "auto":
        augment = replace(augment, micro_batch=AugmentConfig.micro_batch)
    if filter.micro_batch == "auto":
        filter = replace(filter, micro_batch=FilterConfig.micro_batch)
    return replace(recipe, augment=augment, filter=filter)


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults written out; `load_recipe` reads it back."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(recipe))), sort_keys=False, width=110)


def differences(old: Recipe, new: Recipe) -> Iterator[str]:
    """`key: old value -> new value` of each setting that differs."""
    before, after = _flat(old.fields), _flat(new.fields)
    for key in before | after:
        if before.get(key) != after.get(key):
            yield f"{key}: {before.get(key)!r} -> {after.get(key)!r}"


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
