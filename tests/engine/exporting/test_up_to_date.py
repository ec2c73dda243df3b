"""What an export remembers of the files that it read."""

from dataclasses import replace
from pathlib import Path

from engine.exporting.up_to_date import Stamp
from engine.recipe import load_recipe


def test_all_files_of_weights_in_several_are_noted(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "part.safetensors").touch()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"fc.weight": "part.safetensors"}}')
    loaded = load_recipe(str(recipe))
    loaded = replace(loaded, teacher=replace(loaded.teacher, weights=str(index)))
    files = Stamp.of(loaded, ["teacher"], None, None).files
    assert files is not None
    assert {index, tmp_path / "part.safetensors"} <= set(files)
