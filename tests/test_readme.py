"""The README is correct: its recipe loads, and its commands accept the flags it shows."""

import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from engine import generate
from engine.cli.arguments import CommandLine, add_short_flags
from engine.recipes.load import load_recipe

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_recipe_in_the_readme_loads(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my-recipe.yaml").write_text(block)
    recipe = load_recipe(str(tmp_path / "my-recipe.yaml"))
    assert recipe.teacher.name == "timm:resnet34"
    assert recipe.filter.class_gate


@pytest.mark.parametrize(
    ("own", "line"),
    [
        *(
            ("--out", line)
            for line in re.findall(r"^    python -m engine\.run (.*?)(?:\s+#.*)?$", README, re.M)
        ),
        *(
            ("--out --network --images --run", line)
            for line in re.findall(r"^    python -m export (.*?)(?:\s+#.*)?$", README, re.M)
        ),
    ],
)
def test_the_commands_in_the_readme_are_understood(own: str, line: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my-recipe.yaml").write_text(block)
    parser = ArgumentParser(exit_on_error=False)
    for flag in own.split():
        parser.add_argument(flag)
    parser.add_argument("--resume", action="store_true")
    add_short_flags(parser)
    arguments = line.replace("my-recipe.yaml", str(tmp_path / "my-recipe.yaml")).split()
    recipe, options = CommandLine.read(arguments).parse(parser)
    assert recipe.name == ("my-recipe" if "my-recipe" in line else "fashion-mnist")
    assert "--trt" not in line or recipe.compute.runtime == "tensorrt"
    assert options.out is None or options.out.startswith(("runs/", "engines"))


@pytest.mark.parametrize(
    "line", re.findall(r"^    python -m engine\.generate (.*?)(?:\s+#.*)?$", README, re.M)
)
def test_the_generations_in_the_readme_are_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my-recipe.yaml").write_text(block)
    asked = []
    for action in ("_generate", "_print_plan", "_print_status"):
        monkeypatch.setattr(generate, action, lambda *given: asked.append(given[-1]))
    generate.command(line.replace("my-recipe.yaml", str(tmp_path / "my-recipe.yaml")).split())
    (options,) = asked
    assert [bool(options.out), options.plan, bool(options.status)].count(True) == 1
