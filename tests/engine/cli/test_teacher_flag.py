"""`--teacher NAME`: a whole run without a recipe file, in which every other setting has its default."""

import re
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from engine.cli.arguments import CommandLine, command_parser
from engine.cli.main import main
from engine.config.methods import METHODS
from engine.config.recipe import Recipe, derived, flatten
from engine.recipes.load import load_recipe
from engine.run import command

ROOT = Path(__file__).parents[3]
NAME = "timm:resnet34"


def parsed(*arguments: str) -> Recipe:
    return CommandLine.read(arguments).parse(command_parser("engine.run", None))[0]


def defaults(owner: Any = Recipe) -> dict[str, Any]:
    """Return the default of every setting by dotted key, as the dataclasses have them."""
    kinds, found = get_type_hints(owner), {}
    for field in fields(owner):
        if is_dataclass(kinds[field.name]):
            section = defaults(kinds[field.name])
            found |= {f"{field.name}.{key}": value for key, value in section.items()}
        else:
            found[field.name] = None if field.default is MISSING else field.default
    return found


def in_the_page() -> dict[str, str]:
    """Return the default of every setting by dotted key, as docs/recipes.md writes it."""
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8").split("## Every key")[1]
    found: dict[str, str] = {}
    for introduction, table in re.findall(r"^(\S.*?):.*\n\n\| key .*\n\|.*\n((?:\|.*\n)+)", text, re.M):
        for section in re.findall(r"`(\w+)`", introduction) or [""]:
            for key, default in re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.M):
                found[f"{section}.{key}".lstrip(".")] = default
    return found


def test_every_other_setting_has_the_default_of_code_and_documentation() -> None:
    wanted = defaults() | {"name": "resnet34", "teacher.name": NAME}
    left_out = {"augment.method": "none", "filter.method": "none"}  # auto without a prior and a CLIP model
    assert {key: wanted[key] for key in left_out} == dict.fromkeys(left_out, "auto")
    by_method = {f"synthesize.{name}": value for name, value in asdict(METHODS["dda"]).items()}
    assert flatten(asdict(parsed("--teacher", NAME))) == wanted | left_out | by_method
    page = in_the_page()
    assert page == {key: written(defaults()[key]) for key in wanted.keys() - {"name"}}


def written(value: Any) -> str:
    """Return a default as YAML."""
    if isinstance(value, str):
        return value or "''"
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True)
    return text.removesuffix("\n...\n").strip()


@pytest.mark.parametrize(
    ("teacher", "name"),
    [
        ("timm:resnet34", "resnet34"),
        ("timm:resnet50.a1_in1k", "resnet50-a1_in1k"),
        ("hf:models/my vit/", "my-vit"),
        ("hf:folder", "folder"),
        ("hf:/", "teacher"),
        ("my_package.nets:make", "make"),
    ],
)
def test_the_teacher_names_the_runs_folder(teacher: str, name: str) -> None:
    assert CommandLine.read(["--teacher", teacher]).recipe_name() == name
    assert CommandLine.read([f"--teacher={teacher}", "--name", "mine"]).recipe_name() == "mine"
    assert parsed("--teacher", teacher).name == name


def test_other_flags_set_single_settings() -> None:
    recipe = parsed("--teacher", NAME, "--teacher.image_size", "[64, 80]", "--schedule.rounds", "5")
    assert recipe.teacher.size == recipe.student.size == (64, 80)
    assert recipe.schedule.rounds == 5
    assert parsed("--teacher", NAME, "--teacher.image_size", "96").teacher.image_size == 96


def test_with_a_recipe_it_sets_the_name_alone() -> None:
    base = load_recipe("fashion-mnist")
    assert parsed("--recipe", "fashion-mnist", "--teacher", "engine:wrn_40_2") == load_recipe(
        "fashion-mnist", {"teacher.name": "engine:wrn_40_2"}
    )
    assert CommandLine.read(["--recipe", "fashion-mnist", "--teacher", "x:y"]).recipe_name() == base.name


def test_the_long_flag_changes_the_default_recipe() -> None:
    recipe = parsed("--teacher.name", "engine:wrn_40_2")
    assert recipe == derived(load_recipe("fashion-mnist", {"teacher.name": "engine:wrn_40_2"}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher"], "expected one argument"),
        (["--teacher", ""], "teacher.name is not set; give timm:NAME, "),
        (["--teacher", "resnet34"], "teacher.name must be timm:NAME, .*, got 'resnet34'"),
        (["--teacher", "timm:no_such"], "teacher.name: no network 'no_such' in timm"),
        (["--teacher", NAME], "teacher.weights is not set; give the .safetensors or .pth file"),
        (["--teacher", NAME, "--teacher.weights", "no.pth"], "teacher.weights: 'no.pth' does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_missing_is_said_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, [*arguments, "--out", str(tmp_path / "out"), "--compute.device", "cpu"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(f"^error: .*{message}", last), last
    assert not (tmp_path / "out").exists()
