"""Parquet files and folders of save_to_disk, written by pyarrow and by the datasets package."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine.datasets.source import LabeledSource, decode
from engine.datasets.tables import open_parquet, open_saved
from engine.errors import UserError
from tests.labeled_images import LABELS, NAMES, SIZE, parquet, pixels, png


def decoded(source: LabeledSource) -> np.ndarray:
    return np.stack([decode(image, (SIZE, SIZE)).transpose(1, 2, 0) for image in source.read()])


def hugging_face(names: tuple[str, ...] = NAMES) -> datasets.Dataset:
    """Return the images as a dataset; 3 rows more than one of its record batches are kept apart."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {"image": [Image.fromarray(image) for image in pixels()], "label": list(LABELS)}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("names", [(), NAMES], ids=["numbers", "ClassLabel"])
def test_a_struct_of_bytes_and_path(names: tuple[str, ...], tmp_path: Path) -> None:
    source = open_parquet([parquet(tmp_path / "x.parquet", names=names)])
    assert (source.labels.tolist(), source.class_names) == (list(LABELS), names or None)
    assert np.array_equal(decoded(source), pixels())


def test_bytes_and_names_over_several_files(tmp_path: Path) -> None:
    labels, files = ["b", "a", "b", "c"], []
    for number in range(2):
        rows = slice(2 * number, 2 * number + 2)
        images = [png(image) for image in pixels(4)[rows]]
        files.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table({"img": images, "label": labels[rows], "id": [1, 2]}), files[-1])
    source = open_parquet(files)
    assert (source.labels.tolist(), source.class_names) == ([1, 0, 1, 2], ("a", "b", "c"))
    assert np.array_equal(decoded(source), pixels(4))
    assert [image.where for image in source.read()][2] == f"{files[1]}: row 0"


def test_what_datasets_writes_as_parquet_has_its_names(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    hugging_face().to_parquet(path)
    source = open_parquet([path])
    assert (source.labels.tolist(), source.class_names) == (list(LABELS), NAMES)
    assert np.array_equal(decoded(source), pixels())


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_save_to_disk(shards: int, tmp_path: Path) -> None:
    hugging_face().save_to_disk(tmp_path / "saved", num_shards=shards)
    source = open_saved(tmp_path / "saved")
    assert source.format == "Hugging Face dataset"
    assert (source.labels.tolist(), source.class_names) == (list(LABELS), NAMES)
    assert np.array_equal(decoded(source), pixels())


def test_a_selection_is_saved_as_it_was_selected(tmp_path: Path) -> None:
    hugging_face().select([5, 1, 2]).save_to_disk(tmp_path / "saved")
    source = open_saved(tmp_path / "saved")
    assert source.labels.tolist() == [LABELS[5], LABELS[1], LABELS[2]]
    assert np.array_equal(decoded(source), pixels()[[5, 1, 2]])


def test_of_several_splits_the_test_split_counts(tmp_path: Path) -> None:
    whole = hugging_face()
    splits = {"train": whole.select(range(4)), "test": whole.select(range(4, 7))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert np.array_equal(decoded(open_saved(tmp_path / "saved")), pixels()[4:])
    datasets.DatasetDict({"train": whole, "validation": whole}).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match=r"has no split `test`; give the folder of one .*other/validation"):
        open_saved(tmp_path / "other")
    assert len(open_saved(tmp_path / "other" / "validation").labels) == len(LABELS)


def table(**columns: list[object]) -> pa.Table:
    return pa.table(columns)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table(image=[b""], target=[1]), "needs the columns image and label, but has image, target"),
        (table(image=["a.png"], label=[1]), "column image is string; it must hold image files as bytes"),
        (table(image=[b"", b""], label=[1, None]), "a label is None"),
        (table(image=[b""], label=[1.5]), "a label is 1.5"),
        (table(image=[b""], label=[True]), "a label is True"),
    ],
    ids=["columns", "strings", "null", "float", "bool"],
)
def test_a_bad_table_is_named(content: pa.Table, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(content, path)
    with pytest.raises(UserError, match=rf"{path}.*{words}"):
        open_parquet([path])


def test_a_row_without_an_image_and_a_corrupt_one_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = [{"bytes": png(pixels(1)[0]), "path": None}, {"bytes": b"?", "path": "b.png"}]
    pq.write_table(table(image=rows, label=[0, 1]), path)
    with pytest.raises(UserError, match=r"x\.parquet: row 1 \(b\.png\) cannot be read as an image"):
        decoded(open_parquet([path]))
    pq.write_table(table(image=[*rows[:1], {"bytes": None, "path": None}], label=[0, 1]), path)
    with pytest.raises(UserError, match=r"x\.parquet: row 1 has no image"):
        decoded(open_parquet([path]))


def test_images_may_lie_next_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(pixels(1)[0]))
    pq.write_table(table(image=[{"bytes": None, "path": "a.png"}], label=[0]), tmp_path / "x.parquet")
    assert np.array_equal(decoded(open_parquet([tmp_path / "x.parquet"])), pixels(1))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=rf"{path} cannot be read as a table of images"):
        open_parquet([path])
    saved = tmp_path / "saved"
    hugging_face().save_to_disk(saved)
    (arrow,) = saved.glob("*.arrow")
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{arrow} cannot be read as a table of images"):
        decoded(open_saved(saved))
    arrow.unlink()
    with pytest.raises(UserError, match=rf"{arrow} cannot be read as a table of images"):
        open_saved(saved)
    (saved / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        open_saved(saved)
