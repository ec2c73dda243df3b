"""The marker of an export: which inputs it records, and which changes it detects."""

from dataclasses import replace
from pathlib import Path

from engine.exporting.up_to_date import Exported, UpToDateMarker
from engine.recipes.load import load_recipe


def test_all_files_of_sharded_weights_are_recorded(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "part.safetensors").touch()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"fc.weight": "part.safetensors"}}')
    loaded = load_recipe(str(recipe))
    loaded = replace(loaded, teacher=replace(loaded.teacher, weights=str(index)))
    files = UpToDateMarker.of(loaded, ["teacher"], None, None).files
    assert files is not None
    assert {index, tmp_path / "part.safetensors"} <= set(files)


def test_an_export_with_missing_or_changed_files_is_not_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    files = [tmp_path / "student" / name for name in ("student.json", "student.onnx")]
    for path in files:
        path.write_text(path.name)
    marker = UpToDateMarker(settings={"networks": ["student"]}, files=[])
    exported = Exported(
        target="any", reports={"student": {"entries": []}}, handed_over={"student": "student"}
    )
    marker.write(tmp_path, exported)
    assert marker.read(tmp_path) == exported
    files[1].write_text("something else")
    assert marker.read(tmp_path) is None
    files[1].unlink()
    assert marker.read(tmp_path) is None
