"""What the README shows a user: its recipe loads, its commands take the flags it gives them."""

import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from engine.recipe import load_recipe, parse

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_recipe_in_the_readme_loads(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my-recipe.yaml").write_text(block)
    recipe = load_recipe(str(tmp_path / "my-recipe.yaml"))
    assert recipe.teacher.name == "timm:resnet34"
    assert recipe.filter.class_gate


@pytest.mark.parametrize(
    "line", re.findall(r"^    python -m engine\.run (.*?)(?:\s+#.*)?$", README, re.MULTILINE)
)
def test_the_run_commands_in_the_readme_are_understood(line: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my-recipe.yaml").write_text(block)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--out")
    parser.add_argument("--resume", action="store_true")
    recipe, options = parse(parser, line.replace("my-recipe.yaml", str(tmp_path / "my-recipe.yaml")).split())
    assert recipe.name == "my-recipe"
    assert options.out.startswith("runs/")
