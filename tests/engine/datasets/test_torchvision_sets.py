"""torchvision's own classes, on files that the tests write in the published formats."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from engine.datasets import torchvision_sets
from engine.datasets.source import LabeledSource, decode
from engine.datasets.torchvision_sets import open_torchvision
from engine.errors import UserError
from tests.labeled_images import pixels


def decoded(source: LabeledSource, side: int) -> np.ndarray:
    return np.stack([decode(image, (side, side)).transpose(1, 2, 0) for image in source.read()])


def write_mnist(folder: Path, images: np.ndarray, labels: list[int]) -> None:
    """Write the four idx files of FashionMNIST; the train split has other images."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, shown in (("t10k", images), ("train", 255 - images)):
        header = struct.pack(">IIII", 2051, *shown.shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + shown.tobytes())
        labelled = struct.pack(">II", 2049, len(labels)) + bytes(labels)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(labelled)
        (raw / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labelled))


def test_a_dataset_with_train_false(tmp_path: Path) -> None:
    images = pixels(3, 28)[..., 0]
    write_mnist(tmp_path, images, [9, 0, 3])
    source = open_torchvision("FashionMNIST", str(tmp_path))
    assert source.format == "torchvision"
    assert source.labels.tolist() == [9, 0, 3]
    assert source.class_names is not None
    assert (source.class_names[9], source.class_names[0]) == ("Ankle boot", "T-shirt/top")
    assert source.has_own_order
    assert np.array_equal(decoded(source, 28), np.repeat(images[..., None], 3, 3))


def test_a_dataset_with_a_split_and_without_names_or_a_list_of_labels(tmp_path: Path) -> None:
    folder = tmp_path / "gtsrb"
    images = folder / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    rows = ["Filename;Width;ClassId"]
    for number, (label, image) in enumerate(zip((41, 3, 0), pixels(3), strict=True)):
        Image.fromarray(image).save(images / f"{number:05}.ppm")
        rows.append(f"{number:05}.ppm;16;{label}")
    (folder / "GT-final_test.csv").write_text("\n".join(rows))
    source = open_torchvision("GTSRB", str(tmp_path))
    assert (source.labels.tolist(), source.class_names) == ([41, 3, 0], None)
    assert np.array_equal(decoded(source, 16), pixels(3))


def test_the_names_of_one_class_are_joined(tmp_path: Path) -> None:
    root = tmp_path / "imagenette2" / "val"
    for number, (wnid, image) in enumerate(zip(("n01440764", "n03888257"), pixels(2), strict=True)):
        (root / wnid).mkdir(parents=True)
        Image.fromarray(image).save(root / wnid / f"{number}.JPEG", "png")
        (tmp_path / "imagenette2" / "train" / wnid).mkdir(parents=True)
    source = open_torchvision("Imagenette", str(tmp_path))
    assert source.labels.tolist() == [0, 1]
    assert source.class_names is not None
    assert source.class_names[0] == "tench, Tinca tinca"
    assert np.array_equal(decoded(source, 16), pixels(2))


def test_missing_files_are_downloaded_into_the_cache(tmp_path: Path, monkeypatch) -> None:
    """The download itself writes the files here; the network is never asked."""
    asked = []

    def download(self: torchvision.datasets.FashionMNIST) -> None:
        asked.append(self.root)
        if not (Path(self.root) / "FashionMNIST").exists():
            write_mnist(Path(self.root), pixels(2, 28)[..., 0], [1, 2])

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", download)
    monkeypatch.setattr(torchvision_sets, "CACHE", tmp_path / "cache")
    assert open_torchvision("FashionMNIST", None).labels.tolist() == [1, 2]
    assert asked == [str(tmp_path / "cache")]
    assert open_torchvision("FashionMNIST", None).labels.tolist() == [1, 2]
    assert len(asked) == 1, "files that are there are not fetched again"


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch) -> None:
    def download(_: object) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    with pytest.raises(
        UserError, match=rf"CIFAR10 cannot be opened in {tmp_path} \(no network\); set evaluate.root"
    ):
        open_torchvision("CIFAR10", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CIFAR11", "torchvision has no dataset 'CIFAR11'"),
        ("wrap_dataset_for_transforms_v2", "torchvision has no dataset"),
        ("os", "torchvision has no dataset 'os'"),
        ("Caltech101", "has no test split"),
        ("ImageNet", "cannot be opened in"),
        ("VOCDetection", "has no test split"),
    ],
)
def test_other_names_are_refused(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        open_torchvision(name, str(tmp_path))
