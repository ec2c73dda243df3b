"""Write the recipe of an inspected teacher, with a comment for everything that was read or proposed."""

import json
from collections.abc import Iterator
from dataclasses import fields, replace

from engine.config.recipe import Recipe, derived
from engine.inspection.facts import Facts

MANY_NAMES = 40
"""Maximum number of class names to write out if they are only numbers."""
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
    for name in ("num_classes", "in_channels", "image_size", "mean", "std"):
        yield _line(name, getattr(teacher, name), origins.get(name, ""))
    if facts.feature is not None:
        path, _, shape = facts.feature.partition(", ")
        yield _line("feature", path, f"{shape}: the last map before pooling")
    yield "student:"
    share = facts.multiplications[1] / facts.multiplications[0]
    yield _line("name", student.name, f"{share:.2f} of the teacher's multiplications")
    if recipe.seed:
        yield _line("seed", recipe.seed, indent=0)
    yield "synthesize:"
    yield _line("batch_size", recipe.synthesize.batch_size)
    yield _line("steps", recipe.synthesize.steps, f"images are held to {facts.statistics}")
    listed = ("batch_size", "steps")
    changed = _changed(recipe, "synthesize").items()
    yield from (_line(name, value) for name, value in changed if name not in listed)
    yield "schedule:  # --budget TIME replaces these counts and synthesize.steps"
    for name in ("init_batches", "rounds", "batches_per_round", "kd_steps"):
        yield _line(name, getattr(recipe.schedule, name))
    for section in ("augment", "filter", "storage", "distill", "evaluate"):
        settings = _changed(recipe, section)
        if settings:
            yield f"{section}:"
            yield from (_line(name, value) for name, value in settings.items())
    yield ""
    yield OPTIONAL.rstrip("\n")


def _changed(recipe: Recipe, section: str) -> dict[str, object]:
    """Return the settings of a section that are neither its defaults nor derived from other settings."""
    is_open = {name: replace(getattr(recipe, name), method="auto") for name in ("augment", "filter")}
    defaults = getattr(derived(replace(recipe, **is_open)), section)
    changed: dict[str, object] = {}
    for field in fields(defaults):
        value = getattr(getattr(recipe, section), field.name)
        default = defaults.method if field.name == "method" else field.default
        if value != default:
            changed[field.name] = value
    return changed


def _line(name: str, value: object, comment: str = "", indent: int = 2) -> str:
    text = f"{' ' * indent}{name}: {_value(value)}"
    return f"{text}  # {comment}" if comment else text


def _value(value: object) -> str:
    """Return a value as JSON, which is YAML."""
    return json.dumps(value, ensure_ascii=False)
