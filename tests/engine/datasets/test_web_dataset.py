"""WebDataset shards, written by the webdataset package, by hand and by our own bank."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import webdataset

from engine.bank.reader import BankReader
from engine.cli.main import main
from engine.datasets.source import LabeledSource, decode
from engine.datasets.web_dataset import open_tars
from engine.errors import UserError
from engine.generate import command
from tests.labeled_images import LABELS, SIZE, pixels, png, shards, tar


class Explosive:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def decoded(source: LabeledSource) -> np.ndarray:
    return np.stack([decode(image, (SIZE, SIZE)).transpose(1, 2, 0) for image in source.read()])


def test_what_the_webdataset_package_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for key, (label, image) in enumerate(zip(LABELS, pixels(), strict=True)):
            writer.write({"__key__": f"a/{key:04}", "png": image, "cls": label, "json": {"label": 99}})
    source = open_tars([path])
    assert (source.labels.tolist(), source.class_names) == (list(LABELS), None)
    assert np.array_equal(decoded(source), pixels())
    assert next(source.read()).where == f"{path}: a/0000.png"


def test_several_shards_are_read_in_order_and_names_are_sorted(tmp_path: Path) -> None:
    names = ["dog", "ant", "cat", "cat", "dog", "ant", "ant"]
    folder = shards(tmp_path, names)
    source = open_tars(sorted(folder.iterdir()))
    assert (source.class_names, source.has_own_order) == (("ant", "cat", "dog"), False)
    assert [source.class_names[label] for label in source.labels] == names
    assert np.array_equal(decoded(source), pixels())


def test_json_gives_a_label_and_perhaps_a_name(tmp_path: Path) -> None:
    fields = [
        {"label": 5, "class_name": "five"},
        {"label": 2, "class_name": "two"},
        {"label": 5, "class_name": "five"},
    ]
    members = []
    for key, (field, image) in enumerate(zip(fields, pixels(3), strict=True)):
        members += [(f"{key}.json", json.dumps(field).encode()), (f"{key}.PNG", png(image))]
    source = open_tars([tar(tmp_path / "0.tar", members)])
    assert (source.labels.tolist(), source.class_names) == ([1, 0, 1], ("two", "five"))
    assert source.has_own_order
    assert np.array_equal(decoded(source), pixels(3))


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_our_own_bank_is_a_test_set(codec: str, recipe: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    flags = ["--recipe", str(recipe), "--out", str(bank), "--shards", "2", "--storage.codec", codec]
    assert main(command, [*flags, "--quiet"]) == 0
    reader = BankReader.open(str(bank))
    source = open_tars(sorted(bank.glob("*.tar")))
    names = reader.header.class_names
    wanted = np.concatenate([reader.spans(number).labels for number in reader.numbers])
    assert source.class_names is not None
    assert [source.class_names[label] for label in source.labels] == [names[label] for label in wanted]
    stored = np.concatenate(
        [reader.images(number, range(len(reader.spans(number)))) for number in reader.numbers]
    )
    assert np.array_equal(decoded(source), stored)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    image, bomb = pixels(1)[0], tmp_path / "exploded"
    harmful = pickle.dumps(Explosive(bomb))
    members = [("0.png", png(image)), ("0.pyd", harmful), ("0.pickle", harmful), ("0.cls", b"1")]
    source = open_tars([tar(tmp_path / "0.tar", members)])
    assert np.array_equal(decoded(source), image[None])
    assert not bomb.exists()
    pickle.loads(harmful)
    assert bomb.exists(), "else this test could not fail"


def test_what_is_no_sample_is_skipped(tmp_path: Path) -> None:
    members = [
        ("README.md", b"hello"),
        ("._0.png", b"macOS"),
        ("dataset.json", b"{}"),
        ("0.seg.png", b"a mask"),
        ("0.png", png(pixels(1)[0])),
        ("0.cls", b"1"),
    ]
    source = open_tars([tar(tmp_path / "0.tar", members)])
    assert np.array_equal(decoded(source), pixels(1))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"0.png": b""}, "0.tar: 0 has no label"),
        ({"0.png": b"", "0.cls": b" "}, "0.tar: 0 has no label"),
        ({"0.png": b"", "0.json": b'{"label": null}'}, "0.tar: 0 has no label"),
        ({"0.png": b"", "0.json": b'{"label": true}'}, "0.tar: 0 has no label"),
        ({"0.png": b"", "0.json": b"[]"}, "0.tar: 0 has no label"),
        ({"0.png": b"", "0.json": b"{"}, "0.tar: 0.json is not JSON"),
        ({"0.png": b"", "0.jpg": b"", "0.cls": b"1"}, "0.tar: 0 has several images"),
        ({"0.png": b"", "0.cls": b"1", "1.png": b"", "1.cls": b"ape"}, "some labels are text"),
    ],
)
def test_a_bad_sample_is_named(members: dict[str, bytes], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        open_tars([tar(tmp_path / "0.tar", list(members.items()))])


def test_a_class_with_two_names_or_a_missing_name_is_named(tmp_path: Path) -> None:
    def labelled(*fields: dict[str, object]) -> Path:
        members = []
        for key, field in enumerate(fields):
            members += [(f"{key}.png", b""), (f"{key}.json", json.dumps(field).encode())]
        return tar(tmp_path / "0.tar", members)

    with pytest.raises(UserError, match=r"0\.tar: 1 calls class 3 'b', others 'a'"):
        open_tars([labelled({"label": 3, "class_name": "a"}, {"label": 3, "class_name": "b"})])
    with pytest.raises(UserError, match="class 4 has no class_name, but class 3 has"):
        open_tars([labelled({"label": 3, "class_name": "a"}, {"label": 4})])


def test_a_truncated_tar_is_named(tmp_path: Path) -> None:
    (path, *_) = sorted(shards(tmp_path).iterdir())
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"000\.tar cannot be read as a tar file"):
        open_tars([path])


def test_a_compressed_tar_is_read(tmp_path: Path) -> None:
    import gzip

    (path, *_) = sorted(shards(tmp_path).iterdir())
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(decoded(open_tars([packed])), pixels()[:4])
    assert io.BytesIO(packed.read_bytes()).read(2) == b"\x1f\x8b"
