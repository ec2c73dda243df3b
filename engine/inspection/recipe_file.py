"""Write the recipe of an inspected teacher, with a comment for everything that was read or proposed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from engine.config.classifier import ClassifierConfig
from engine.config.recipe import Recipe, derived
from engine.config.synthesize import SynthesizeConfig
from engine.inspection.facts import Facts

MANY_NAMES = 40
"""Maximum number of class names to write out if they are only numbers."""
COUNTS = ("init_batches", "rounds", "batches_per_round", "kd_steps")
SECTIONS = ("compute", "tensorrt", "feed", "augment", "filter", "storage", "distill", "evaluate")
OPTIONAL = """\
# A diffusion model that knows images like the teacher's makes the student better:
# augment: {prior: FOLDER}        # tried on one batch, and skipped if it does not fit the teacher
# filter: {model: "local-dir:FOLDER", omega: 0.6}

# If left and right matter, as in digits and text:
# distill: {flip: false}

# A test set, read once at the end: folders of images, WebDataset, parquet, a datasets folder
# evaluate: {data: FOLDER}
"""


def recipe_text(facts: Facts, file: str) -> str:
    """Return the YAML of the recipe, which will lie in `file`."""
    return "\n".join(_lines(facts, file)) + "\n"


def _lines(facts: Facts, file: str) -> Iterator[str]:
    recipe, origins = facts.recipe, facts.origins
    teacher, student = recipe.teacher, recipe.student
    yield f"# python -m engine.run --recipe {file} --budget 1h"
    yield f"name: {_value(recipe.name)}"
    names, numbers = recipe.names, all(name.isdigit() for name in recipe.names)
    if numbers and len(names) > MANY_NAMES:
        yield f"# class_names: [...]  # {len(names):,} names, in the order of the logits"
    else:
        comment = "numbers, as nothing names the classes" if numbers else origins.get("class_names", "")
        yield _line("class_names", list(names), comment, indent=0)
    yield "teacher:"
    yield _line("name", teacher.name, f"{facts.parameters[0] / 1e6:,.1f} million parameters")
    yield _line("weights", teacher.weights)
    for name in ("weights_key", "num_classes", "in_channels", "image_size", "mean", "std", "output"):
        if (value := getattr(teacher, name)) is not None:
            yield _line(name, value, origins.get(name, ""))
    if facts.feature is not None:
        path, _, shape = facts.feature.partition(", ")
        yield _line("feature", path, f"{shape}: the last map before pooling")
    yield "student:"
    share = facts.multiplications[1] / facts.multiplications[0]
    yield _line("name", student.name, f"{share:.2f} of the teacher's multiplications")
    own = derived(replace(recipe, student=ClassifierConfig(name=student.name))).student
    yield from (_line(name, value) for name, value in _differences(student, vars(own)))
    if recipe.seed:
        yield _line("seed", recipe.seed, indent=0)
    yield "synthesize:"
    yield _line("batch_size", recipe.synthesize.batch_size)
    yield _line("steps", recipe.synthesize.steps, f"images are held to {facts.statistics}")
    yield from _others(recipe, "synthesize", ("batch_size", "steps"))
    yield "schedule:  # --budget TIME replaces these counts and synthesize.steps"
    for name in COUNTS:
        yield _line(name, getattr(recipe.schedule, name))
    yield from _others(recipe, "schedule", COUNTS)
    for section in SECTIONS:
        settings = list(_others(recipe, section))
        if settings:
            yield f"{section}:"
            yield from settings
    yield ""
    yield OPTIONAL.rstrip("\n")


def _others(recipe: Recipe, section: str, listed: Sequence[str] = ()) -> Iterator[str]:
    """Yield a line for each setting of a section that is neither listed, nor a default, nor derived."""
    own = getattr(recipe, section)
    usual = {field.name: field.default for field in fields(own)}
    if isinstance(own, SynthesizeConfig):
        usual |= asdict(SynthesizeConfig(method=own.method).chosen)
    elif "method" in usual:
        is_open = {name: replace(getattr(recipe, name), method="auto") for name in ("augment", "filter")}
        usual["method"] = getattr(derived(replace(recipe, **is_open)), section).method
    yield from (_line(name, value) for name, value in _differences(own, usual) if name not in listed)


def _differences(config: Any, usual: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the settings of `config` whose values are not the usual ones."""
    for field in fields(config):
        value = getattr(config, field.name)
        if value != usual[field.name]:
            yield field.name, value


def _line(name: str, value: object, comment: str = "", indent: int = 2) -> str:
    text = f"{' ' * indent}{name}: {_value(value)}"
    return f"{text}  # {comment}" if comment else text


def _value(value: object) -> str:
    """Return a value as JSON, which is YAML."""
    return json.dumps(value, ensure_ascii=False)
