"""Which recipes load, how errors name the wrong key, and that every setting is used."""

import ast
import pickle
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest

from engine import recipes
from engine.cli.arguments import CommandLine, command_parser
from engine.config.recipe import Recipe, differences, to_yaml
from engine.errors import SettingsError, UserError
from engine.recipes.load import load_recipe

ROOT = Path(recipes.__file__).parents[2]
SECTIONS = {name: kind for name, kind in get_type_hints(Recipe).items() if is_dataclass(kind)}


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipe_loads_and_survives_its_own_config_file(name: str, write) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert load_recipe(write(to_yaml(recipe))) == recipe


def test_extends_merges_sections_key_by_key(write) -> None:
    write("extends: fashion-mnist\ndistill: {lr: 0.02, temperature: 7}", "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\nseed: 5\ndistill: {lr: 1e-3}"))
    base = load_recipe("fashion-mnist")
    assert (recipe.name, recipe.seed, recipe.teacher) == ("mine", 5, base.teacher)
    assert recipe.distill == replace(base.distill, lr=1e-3, temperature=7.0)


def test_overrides_beat_the_file(write) -> None:
    path = write("extends: fashion-mnist\nschedule: {rounds: 3}")
    recipe = load_recipe(path, {"schedule.rounds": 4, "teacher.mean": (0.5,), "compute.threads": None})
    assert recipe.schedule.rounds == 4
    assert recipe.teacher.mean == (0.5,)
    assert recipe.compute.threads is None


def test_a_single_number_is_for_all_channels(write) -> None:
    recipe = load_recipe(write("extends: fashion-mnist\nteacher: {mean: 0.5, std: [0.25]}"))
    assert (recipe.teacher.mean, recipe.teacher.std) == ((0.5,), (0.25,))
    assert recipe == load_recipe(write(to_yaml(recipe)))
    parser = command_parser("engine.run", "")
    arguments = ["--recipe", "fashion-mnist", "--teacher.mean", "0.5", "--teacher.std=0.25"]
    on_command_line, _ = CommandLine.read(arguments).parse(parser)
    assert on_command_line.teacher == recipe.teacher


REFUSED = {
    "unknown key": ("synthesize: {stepz: 3}", r"'synthesize\.stepz' .*did you mean 'synthesize\.steps'"),
    "unknown section": ("synthesise: {steps: 3}", r"unknown key 'synthesise'"),
    "wrong type": (
        "synthesize: {batch_size: many}",
        r"synthesize\.batch_size must be a whole number, got 'many'",
    ),
    "neither number nor list": (
        "teacher: {mean: x}",
        r"teacher\.mean must be a number, a list of numbers or null, got 'x'",
    ),
    "a wrong number": ("teacher: {std: 0}", r"teacher\.std must be above 0, got \[0.0\]"),
    "wrong item": ("teacher: {mean: [x]}", r"teacher\.mean"),
    "wrong choice": ("compute: {device: tpu}", r"compute\.device must be one of auto, cpu, cuda, got 'tpu'"),
    "wrong optional": ("compute: {threads: x}", r"compute\.threads must be a whole number or null, got 'x'"),
    "out of range": ("filter: {omega: 1.5}", r"filter\.omega .*1\.5"),
    "negative schedule": ("schedule: {rounds: -1}", r"schedule\.rounds .*-1"),
    "empty schedule": ("schedule: {init_batches: 0, batches_per_round: 0}", r"schedule\.init_batches"),
    "threads": ("compute: {threads: 0}", r"compute\.threads"),
    "no mapping": ("synthesize: 3", r"synthesize .* must be a mapping, got 3"),
    "class count": ("class_names: [a, b]", r"teacher\.num_classes is 10, but class_names has 2"),
    "student's weights": (
        "student: {weights: a.pth}",
        r"student\.weights is a\.pth, but a student starts from random",
    ),
    "student's key": (
        "student: {weights_key: ema}",
        r"student\.weights_key is ema, but a student starts from random",
    ),
    "student's class count": ("student: {num_classes: 9}", r"student\.num_classes is 9"),
    "crop": ("distill: {crop_padding: 32}", r"distill\.crop_padding is 32, but teacher\.image_size is 32"),
    "negative crop": (
        "synthesize: {crop_padding: -1}",
        r"synthesize\.crop_padding must be 0 or above, got -1",
    ),
    "wide crop": ("synthesize: {crop_padding: 40}", r"synthesize\.crop_padding is 40, but teacher"),
    "no flip": ("synthesize: {flip: 3}", r"synthesize\.flip must be true or false or null, got '3'"),
    "image sizes": (
        "student: {image_size: 64}",
        r"student\.image_size is 64x64, but teacher\.image_size is 32x32",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_recipe_names_the_key_in_one_line(text: str, message: str, write) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(write(f"extends: fashion-mnist\n{text}"))


MANY = """
extends: fashion-mnist
synthesize: {stepz: 4, lr: -1}
compute: {device: tpu, threads: null, precision: null}
filter: {omega: 0.5}
distill: {temperature: many, crop_padding: 40}
"""


def test_all_faults_are_told_at_once(write) -> None:
    with pytest.raises(SettingsError) as refused:
        load_recipe(write(MANY), {"storage.codec": "gif", "feed.thread": 3})
    faults = [
        "unknown key 'synthesize.stepz'",
        "distill.temperature must be a number, got 'many'",
        "compute.device must be one of",
        "compute.precision must be one of auto, fp32, bf16, got null",
        "storage.codec must be one of",
        "unknown key 'feed.thread' in the overrides; did you mean 'feed.threads'?",
        "synthesize.lr must be above 0, got -1.0",
        "filter.omega is 0.5 and filter.quantile is 0.1",
        "distill.crop_padding is 40, but teacher.image_size is 32",
    ]
    assert len(refused.value.faults) == len(faults)
    for told, expected in zip(refused.value.faults, faults, strict=True):
        assert told.startswith(expected)
    lines = str(refused.value).splitlines()
    assert lines == ["9 settings are wrong:", *(f"  - {fault}" for fault in refused.value.faults)]
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("filter: {omega: 1.5}", "filter.omega must lie in"),
        ("augment: {steps: 0}", "augment.steps must be"),
        ("augment: {steps: x, strength: 0.0001}", "augment.steps must be"),
        ("class_names: 3", "class_names must be"),
        ("teacher: {image_size: -30}", "teacher.image_size must be"),
        ("teacher: {in_channels: 5, mean: [1, 2]}", "teacher.in_channels must be"),
        ("teacher: {std: []}", "teacher.std must be"),
        ("augment: 3", "augment in recipe"),
        ("schedule: {rounds: -1}", "schedule.rounds must be 0 or above"),
        ("synthesize: {class_weights: {bag: .nan}}", "synthesize.class_weights: 'bag' has nan"),
        ("synthesize: {class_weights: {3: 1}}", "synthesize.class_weights: 3 is not text"),
        ("distill: {taps: {3: a}}", "distill.taps: 3 is not text"),
        ("distill: {taps: {a: 3}}", "distill.taps must be a mapping of names to text, numbers in quotes"),
    ],
)
def test_consequences_of_a_fault_are_left_out(text: str, start: str, write) -> None:
    with pytest.raises(SettingsError) as refused:
        load_recipe(write(f"extends: fashion-mnist\n{text}"))
    (fault,) = refused.value.faults
    assert fault.startswith(start)
    assert str(refused.value) == fault


def test_a_misspelled_key_is_not_missing_too(write) -> None:
    with pytest.raises(SettingsError) as refused:
        load_recipe(write("class_names: [a]\nteacher: {nam: engine:lenet}"))
    (fault,) = refused.value.faults
    assert "did you mean 'teacher.name'?" in fault


def test_missing_sections_are_named(write) -> None:
    with pytest.raises(UserError, match=r"teacher\.name"):
        load_recipe(write("class_names: [a]"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: fashion-mnst", "did you mean 'fashion-mnist'"),
        ("extends: mine.yaml", r"mine\.yaml -> mine\.yaml is a cycle"),
        ("extends: [a]", "must be the name or file of one recipe"),
        ("a: [", "is not YAML"),
        ("- a", "must be a mapping of sections"),
    ],
)
def test_refused_file(text: str, message: str, write) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(write(text))


def test_a_longer_circle_is_found(write) -> None:
    write("extends: mine.yaml", "other.yaml")
    with pytest.raises(UserError, match=r"mine\.yaml -> other\.yaml -> mine\.yaml"):
        load_recipe(write("extends: other.yaml"))


def test_differences_name_the_settings() -> None:
    recipe = load_recipe("fashion-mnist")
    assert list(differences(recipe, recipe)) == []
    other = load_recipe("fashion-mnist", {"distill.lr": 0.5, "seed": 0})
    assert list(differences(recipe, other)) == [f"distill.lr: {recipe.distill.lr} -> 0.5"]


def test_every_setting_has_a_docstring() -> None:
    for section, kind in {"": Recipe, **SECTIONS}.items():
        tree = ast.parse(_source(kind))
        body = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == kind.__name__).body
        for statement, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{section}.{ast.unparse(statement.target)} has no docstring"


# A field counts as used if code outside of the validation reads the attribute of an object known to be that
# configuration: a section of a recipe (`recipe.filter.omega`), a name annotated with the class, or `config`
# in a module that imports the class.


def _source(kind: type) -> str:
    return (ROOT / Path(*kind.__module__.split("."))).with_suffix(".py").read_text()


ALIASES = {"synthesize": ("chosen", "method")}
"""Other names of a section: synthesis reads what its method and the recipe have chosen."""


def _reads(tree: ast.Module, section: str, kind: type) -> set[str]:
    mentions = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    mentions |= {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.alias)}
    holders = {section, *ALIASES.get(section, ())}
    if kind.__name__ in mentions:
        holders |= {"config", *_annotated_with(tree, kind.__name__)}
    read: set[str] = set()
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef) and owner.name == kind.__name__:
            methods = [n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]
            read |= {name for method in methods for name in _attributes_of(method, {"self"})}
    return read | _attributes_of(tree, holders)


def _annotated_with(tree: ast.Module, name: str) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation and name in ast.unparse(node.annotation):
            found.add(node.arg)
    return found


def _attributes_of(tree: ast.AST, holders: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            holder = node.value
            name = holder.attr if isinstance(holder, ast.Attribute) else getattr(holder, "id", None)
            if name in holders:
                found.add(node.attr)
    return found


@pytest.fixture(scope="module")
def trees() -> list[ast.Module]:
    files = [path for folder in ("engine", "bench") for path in (ROOT / folder).rglob("*.py")]
    return [ast.parse(path.read_text()) for path in files]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_read_somewhere(section: str, trees: list[ast.Module]) -> None:
    kind = SECTIONS[section]
    read = set().union(*(_reads(tree, section, kind) for tree in trees))
    dead = {field.name for field in fields(kind)} - read
    assert not dead, f"nothing reads {', '.join(f'{section}.{name}' for name in sorted(dead))}"


def test_every_top_level_setting_is_read_somewhere(trees: list[ast.Module]) -> None:
    read = set().union(*(_attributes_of(tree, {"recipe"}) for tree in trees))
    assert not {field.name for field in fields(Recipe)} - read


def test_the_scan_finds_a_setting_that_nothing_reads() -> None:
    used = ast.parse("def f(config: FilterConfig): return config.omega\nother.quantile")
    assert _reads(used, "filter", SECTIONS["filter"]) == {"omega"}
    elsewhere = ast.parse("def f(config: OtherConfig): return config.omega, recipe.filter.method")
    assert _reads(elsewhere, "filter", SECTIONS["filter"]) == {"method"}


def test_asdict_of_a_recipe_is_plain_data() -> None:
    def leaves(value: object) -> list[object]:
        return [x for v in value.values() for x in leaves(v)] if isinstance(value, dict) else [value]

    kinds = {type(leaf) for leaf in leaves(asdict(load_recipe("fashion-mnist")))}
    assert kinds <= {int, float, str, bool, tuple, type(None)}
