"""The format of a path is recognized by its contents, whatever it is called."""

from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from engine.datasets.formats import open_path
from engine.datasets.source import LabeledSource, decode
from engine.errors import UserError
from tests.labeled_images import LABELS, NAMES, SIZE, class_folders, parquet, pixels, png, shards, tar


def decoded(source: LabeledSource) -> np.ndarray:
    return np.stack([decode(image, (SIZE, SIZE)).transpose(1, 2, 0) for image in source.read()])


def test_class_folders_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "images")
    (folder / "ape" / "deeper").mkdir()
    (folder / "ape" / "deeper" / "a.png").write_bytes(png(pixels(9)[8]))
    reference = ImageFolder(str(folder))
    source = open_path(str(folder))
    assert source.format == "class folders"
    assert (source.labels.tolist(), source.class_names) == (reference.targets, tuple(reference.classes))
    assert np.array_equal(decoded(source), np.stack([np.asarray(image) for image, _ in reference]))


def test_what_is_no_image_is_skipped(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "images")
    for name in ("ape/notes.txt", "ape/.0.png", "ape/._1.png", "README.md", ".cache/x.png", "none/.keep"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    source = open_path(str(folder))
    assert (len(source.labels), source.class_names) == (len(LABELS), ("ape", "bee", "cow", "none"))
    assert len(decoded(source)) == len(LABELS)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".bmp", ".JPG", ".tif", ".ppm"])
def test_any_format_of_pil_counts(suffix: str, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.fromarray(pixels(1)[0]).save(tmp_path / "a" / f"x{suffix}")
    assert len(decoded(open_path(str(tmp_path)))) == 1


def test_tars_and_parquet_files_are_found_in_a_folder_and_under_any_name(tmp_path: Path) -> None:
    shards(tmp_path / "tars")
    (tmp_path / "tars" / "README.md").write_text("about")
    parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "tars" / "000.tar").rename(tmp_path / "tars" / "000.tar.download")
    (tmp_path / "hub" / "data" / "test-00000-of-00001.parquet").rename(tmp_path / "table")
    parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    found = {name: open_path(str(tmp_path / name)) for name in ("tars/000.tar.download", "table", "hub")}
    assert [source.format for source in found.values()] == ["WebDataset", "parquet", "parquet"]
    assert [len(source.labels) for source in found.values()] == [4, 7, 7]
    assert len(open_path(str(tmp_path / "tars" / "001.tar")).labels) == 3


@pytest.mark.parametrize("pattern", ["{000..001}.tar", "{000,001}.tar", "*.tar", "00?.tar", "0{00,01}.t*r"])
def test_a_pattern_names_several_files(pattern: str, tmp_path: Path, monkeypatch) -> None:
    shards(tmp_path / "tars")
    for folder in (str(tmp_path / "tars"), "tars"):
        monkeypatch.chdir(tmp_path)
        source = open_path(f"{folder}/{pattern}")
        assert source.labels.tolist() == list(LABELS)
        assert np.array_equal(decoded(source), pixels())


def test_a_pattern_names_a_split_of_parquet_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(
        UserError, match=r"has files of several splits \(test, train\); .*data/test-\*\.parquet$"
    ):
        open_path(str(tmp_path))
    assert len(open_path(str(tmp_path / "data" / "test-*.parquet")).labels) == len(LABELS)


@pytest.mark.parametrize(
    ("files", "splits", "pattern"),
    [
        (("imagenet-train-0000.tar", "imagenet-val-0000.tar"), "val, train", "imagenet-val-*.tar"),
        (("a/b/train/0.parquet", "a/b/test/0.parquet"), "test, train", "a/b/test/*.parquet"),
        (
            ("x/partial-train/0.parquet", "x/validation/0.parquet"),
            "validation, train",
            "x/validation/*.parquet",
        ),
        (("set.Test.0.tar", "set.Train.0.tar"), "test, train", "set.Test*.tar"),
        (("test/0.parquet", "train-test/0.parquet"), "test, test and train", "test/*.parquet"),
    ],
)
def test_splits_are_not_merged(files: tuple[str, str], splits: str, pattern: str, tmp_path: Path) -> None:
    for name in files:
        if name.endswith(".tar"):
            (shards(tmp_path / "made") / "000.tar").rename(tmp_path / name)
        else:
            parquet(tmp_path / name)
    with pytest.raises(UserError) as raised:
        open_path(str(tmp_path))
    assert f"several splits ({splits}); give a pattern, such as {tmp_path / pattern}" in str(raised.value)
    assert len(open_path(str(tmp_path / pattern)).labels) in (4, 7)


def test_files_of_one_split_are_one_set(tmp_path: Path) -> None:
    for name in ("train/test-0.parquet", "train/test-1.parquet"):
        parquet(tmp_path / "train" / "both" / name)
    for name in ("latest/0.parquet", "contest/test-0.parquet", "data.parquet"):
        parquet(tmp_path / "words" / "of" / name)
    assert len(open_path(str(tmp_path / "train")).labels) == 2 * len(LABELS)
    assert len(open_path(str(tmp_path / "words")).labels) == 3 * len(LABELS)


def test_a_missing_part_of_a_pattern_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    with pytest.raises(UserError, match=r"no file matches '.*/002\.tar'"):
        open_path(str(tmp_path / "{000..002}.tar"))
    with pytest.raises(UserError, match=r"evaluate\.data: 'nowhere' does not exist"):
        open_path("nowhere")


def test_a_path_with_the_characters_of_a_pattern_is_a_path(tmp_path: Path) -> None:
    class_folders(tmp_path / "a[1]{b}")
    assert open_path(str(tmp_path / "a[1]{b}")).class_names == NAMES


def test_splits_are_no_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        class_folders(tmp_path / split)
    (tmp_path / "annotations").mkdir()
    with pytest.raises(UserError, match=rf"are splits, not classes; give one .*/train, {tmp_path}/val$"):
        open_path(str(tmp_path))


def test_what_is_no_test_set_is_refused_with_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "0.png").write_bytes(png(pixels(1)[0]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    tar(tmp_path / "mixed" / "0.tar", [])
    parquet(tmp_path / "mixed" / "x.pq")
    for data in ("flat", "empty", "a.zip", "mixed/*"):
        with pytest.raises(UserError) as raised:
            open_path(str(tmp_path / data))
        assert data in str(raised.value)
        assert "class folders" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_set_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folders" / "cat").mkdir(parents=True)
    tar(tmp_path / "0.tar", [("README.md", b"nothing")])
    for data in ("folders", "0.tar"):
        with pytest.raises(UserError, match="holds no images"):
            open_path(str(tmp_path / data))
