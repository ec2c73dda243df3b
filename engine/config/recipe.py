"""The recipe of an experiment: one configuration section for each part of the engine."""

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
"""File name of the recipe in a run's folder."""

MAX_WEIGHT_RATIO = 1_000_000
"""Maximum ratio of two classes' weights."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of an experiment."""

    name: str = field(metadata=decides())
    """Name of the recipe and of the run's folder; by default the name of the recipe's file."""
    seed: int = field(default=0, metadata=decides("images"))
    """Seed of every random draw."""
    class_names: tuple[str, ...] = field(metadata=decides("images", "student"))
    """Names of the classes, in the order of the teacher's logits."""
    compute: ComputeConfig = field(default=ComputeConfig(), metadata=decides("execution"))
    """Device, precision, runtime and threads"""
    tensorrt: TensorRtConfig = field(default=TensorRtConfig(), metadata=decides("execution"))
    """How TensorRT's engines are built"""
    teacher: ClassifierConfig = field(metadata=decides("images", "student"))
    """The trained classifier to distill from"""
    student: ClassifierConfig = field(metadata=decides("student"))
    """The classifier to train"""
    schedule: ScheduleConfig = field(default=ScheduleConfig(), metadata=decides("student"))
    """Numbers of batches, rounds and training steps"""
    synthesize: SynthesizeConfig = field(metadata=decides("images"))
    """Synthesis of source images by inverting the teacher"""
    augment: AugmentConfig = field(metadata=decides("images"))
    """Variations of the sources by a diffusion prior"""
    filter: FilterConfig = field(metadata=decides("images"))
    """Which variations are kept"""
    storage: StorageConfig = field(default=StorageConfig(), metadata=decides("images"))
    """Format of the bank's images"""
    feed: FeedConfig = field(default=FeedConfig(), metadata=decides("execution"))
    """How the bank's images reach the student"""
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
                    f"{section}.num_classes is {given}, but class_names has {num_classes}; make them agree"
                )
        if self.student.image_size != self.teacher.image_size:
            raise UserError(
                f"student.image_size is {self.student.image_size}, but teacher.image_size is"
                f" {self.teacher.image_size}, and both see the same images; make them agree"
            )
        if self.teacher.image_size % 4:
            raise UserError(
                "teacher.image_size must be a multiple of 4, because the generator doubles its size twice; "
                f"got {self.teacher.image_size}"
            )
        self._check_views()
        for name in ("weights", "weights_key"):
            if (given := getattr(self.student, name)) is not None:
                raise UserError(
                    f"student.{name} is {given}, but a student starts from random weights; set it to null"
                )
        self._check_class_weights()
        if self.augment.class_condition == "text" and not self.filter.model:
            raise UserError(
                "augment.class_condition is text, which needs the text tower of filter.model, but no model "
                "is set; give an open_clip model, or set augment.class_condition to none"
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
            raise UserError("synthesize.class_weights leaves no class; set at least one weight above 0")
        if max(weights) > MAX_WEIGHT_RATIO * min(weights):
            raise UserError(
                f"synthesize.class_weights: {max(weights):g} is more than {MAX_WEIGHT_RATIO:,} times another "
                f"class's {min(weights):g}; set the weight of a class that you do not want to 0"
            )

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """Weight of each class in the draw, in the order of `class_names`; None draws all equally often."""
        given = self.synthesize.class_weights
        return None if given is None else tuple(given.get(name, 1.0) for name in self.class_names)

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
        """Whether no setting that depends on the machine is auto or null."""
        return self.compute.is_resolved and self.feed.is_resolved and not self.auto_batches

    @property
    def synthesis_views(self) -> Views:
        """Random views of a synthesized image that the teacher sees."""
        return self.synthesize.views(default=self.distill.views)

    def _check_views(self) -> None:
        size = self.teacher.image_size
        for section in ("distill", "synthesize"):
            padding = getattr(self, section).crop_padding
            if padding is not None and padding >= size:
                raise UserError(
                    f"{section}.crop_padding is {padding}, but teacher.image_size is {size}; lower it"
                )


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
