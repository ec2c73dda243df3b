"""The test set of a recipe: optional, matched to its classes by name, read in batches."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config.evaluate import EvaluateConfig
from engine.datasets import test_set
from engine.datasets.source import Encoded, LabeledSource
from engine.datasets.test_set import check_test_set, match_labels, open_test_set
from engine.errors import UserError
from tests.labeled_images import LABELS, NAMES, SIZE, class_folders, parquet, pixels, shards

SQUARE = (SIZE, SIZE)


def opened(data: Path, class_names: tuple[str, ...] = NAMES) -> test_set.LabeledTestSet:
    found, reason = open_test_set(EvaluateConfig(data=str(data)), class_names, SQUARE)
    assert found is not None
    assert reason is None
    return found


def test_none_gives_the_reason() -> None:
    assert open_test_set(EvaluateConfig(), NAMES, SQUARE) == (None, "evaluate.data is null")
    for none in ("none", "None", " "):
        with pytest.raises(UserError, match="write null to measure on no test set"):
            EvaluateConfig(data=none)


def test_a_missing_fashion_mnist_gives_the_reason(monkeypatch) -> None:
    def missing(_root: Path | None) -> Path:
        raise FileNotFoundError("no Fashion-MNIST here")

    monkeypatch.setattr("engine.datasets.fashion_mnist.fashion_mnist_root", missing)
    config = EvaluateConfig(data="fashion-mnist")
    assert open_test_set(config, NAMES, (32, 32)) == (None, "no Fashion-MNIST here")
    check_test_set(config, NAMES, (32, 32))


def test_a_named_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"evaluate\.root is {tmp_path}"):
        check_test_set(EvaluateConfig(data="fashion-mnist", root=str(tmp_path)), NAMES, (32, 32))


def test_fashion_mnist_is_its_published_test_split(fashion_mnist_root: Path) -> None:
    from engine.datasets import fashion_mnist

    config = EvaluateConfig(data="fashion-mnist", root=str(fashion_mnist_root))
    found, _ = open_test_set(config, fashion_mnist.CLASS_NAMES, (32, 32))
    assert found is not None
    images, labels = map(torch.cat, zip(*found.batches(), strict=True))
    wanted = fashion_mnist.load("test", fashion_mnist_root)
    assert torch.equal(images, wanted.images)
    assert torch.equal(labels, wanted.labels)
    assert found.notes == ()
    with pytest.raises(
        UserError, match=r"padded to 32x32, but the teacher takes 28x28.*torchvision:FashionMNIST"
    ):
        open_test_set(config, fashion_mnist.CLASS_NAMES, (28, 28))


def test_a_root_next_to_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.root is /x, but evaluate\.data is a path"):
        check_test_set(EvaluateConfig(data=str(class_folders(tmp_path)), root="/x"), NAMES, SQUARE)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100, None])
@pytest.mark.parametrize("write", [class_folders, shards, lambda folder: parquet(folder / "x.parquet")])
def test_batches_are_in_order_and_of_one_size(write, batch_size: int | None, tmp_path: Path) -> None:
    found = opened(write(tmp_path / "set"))
    batches = list(found.batches(batch_size))
    assert [len(images) for images, _ in batches][:-1] == [batch_size] * (len(batches) - 1)
    images, labels = map(torch.cat, zip(*batches, strict=True))
    assert (images.dtype, labels.dtype, len(found)) == (torch.uint8, torch.int64, len(LABELS))
    order = sorted(range(len(LABELS)), key=lambda row: LABELS[row]) if write is class_folders else range(7)
    assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(pixels()[list(order)]))
    assert labels.tolist() == [LABELS[row] for row in order]


def test_a_batch_of_large_images_has_fewer(monkeypatch) -> None:
    assert test_set.PIXELS // (32 * 32) > test_set.MAX_BATCH
    source = LabeledSource(
        format="x",
        labels=np.zeros(5, np.int64),
        class_names=None,
        read=lambda: (Encoded("x", image) for image in pixels(5)),
    )
    monkeypatch.setattr("engine.datasets.test_set.PIXELS", 2 * 400 * 300)
    found = test_set.LabeledTestSet(data="x", source=source, labels=source.labels, size=(400, 300), notes=())
    assert [images.shape for images, _ in found.batches()] == [(2, 3, 400, 300)] * 2 + [(1, 3, 400, 300)]


def test_only_one_batch_is_read_ahead() -> None:
    read = []

    def images():
        for row, image in enumerate(pixels(7)):
            read.append(row)
            yield Encoded("x", image)

    source = LabeledSource(format="x", labels=np.zeros(7, np.int64), class_names=None, read=images)
    found = test_set.LabeledTestSet(data="x", source=source, labels=source.labels, size=SQUARE, notes=())
    next(found.batches(2))
    assert read == [0, 1]


def test_a_set_that_changes_under_way_is_refused(tmp_path: Path) -> None:
    for written in (parquet, shards):
        data = written(tmp_path / "x") if written is shards else written(tmp_path / "x.parquet")
        found = opened(data)
        if written is shards:
            (data / "001.tar").unlink()
            (data / "001.tar").symlink_to(data / "000.tar")
        else:
            parquet(data, labels=[0, 1])
        with pytest.raises(UserError, match="changed while it was read"):
            list(found.batches(2))


def test_a_corrupt_image_is_named_in_order(tmp_path: Path) -> None:
    folder = class_folders(tmp_path)
    (folder / "bee" / "2.png").write_bytes(b"broken")
    batches = opened(folder).batches(2)
    next(batches)
    with pytest.raises(UserError, match=rf"{folder}/bee/2\.png cannot be read as an image"):
        next(batches)


def named(*names: str, labels: tuple[int, ...] | None = None, has_own_order: bool = False) -> LabeledSource:
    given = np.array(range(len(names)) if labels is None else labels, np.int64)
    return LabeledSource(
        format="x", labels=given, class_names=names, read=lambda: iter(()), has_own_order=has_own_order
    )


def numbered(*labels: int) -> LabeledSource:
    return LabeledSource(
        format="x", labels=np.array(labels, np.int64), class_names=None, read=lambda: iter(())
    )


def matched(source: LabeledSource, *class_names: str) -> list[int]:
    labels, notes = match_labels(source, class_names, "x")
    assert [text for level, text in notes if level >= logging.INFO] == []
    return labels.tolist()


def test_names_are_matched_in_any_order(tmp_path: Path) -> None:
    shuffled = ("cow", "ape", "bee")
    images, labels = map(torch.cat, zip(*opened(class_folders(tmp_path), shuffled).batches(), strict=True))
    shown = [pixels().tolist().index(image) for image in images.permute(0, 2, 3, 1).tolist()]
    assert [shuffled[label] for label in labels] == [NAMES[LABELS[row]] for row in shown]
    assert matched(named("a", "b", "c", labels=(2, 1, 0, 2)), "c", "a", "b") == [0, 2, 1, 0]


@pytest.mark.parametrize(
    ("source", "class_names", "words"),
    [
        (
            named("ape", "bee", "kow"),
            NAMES,
            r"1 of 3 classes that class_names lacks: 'kow'; it has no 'cow';",
        ),
        (named("a", "b", "c", "d", "e"), NAMES, r"lacks: 'a', 'b', 'c' and others"),
        (named("Ape", "bee", "cow"), NAMES, "lacks: 'Ape'; it has no 'ape'"),
        (named("ape", "bee", "cow", "dog"), NAMES, "lacks: 'dog'; rename"),
        (named("a", "b"), ("a", "a", "b"), "class_names has 'a' twice"),
        (named("a", "a", "b"), ("a", "b", "c"), "x has 'a' twice"),
        (numbered(0, 3), NAMES, "label 3, but class_names has 3 classes, 0 to 2"),
        (numbered(-1, 0), NAMES, "label -1, but class_names has 3 classes"),
        (named("ape", "bee", labels=(-1, 0)), NAMES, "label -1, which no class has; give a labelled split"),
        (named("ape", "bee", labels=(2, 0)), NAMES, "label 2, which no class has"),
        (
            named("x", "y"),
            ("0", "1", "2"),
            "2 classes, but the teacher has 3; give a set with all of them, or set class_names",
        ),
        (named("0", "3"), ("0", "1", "2"), "label 3, but class_names has 3 classes"),
        (named("1", "01"), ("0", "1"), "x has '1' twice"),
    ],
)
def test_other_classes_are_refused(source: LabeledSource, class_names: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        match_labels(source, class_names, "x")
    assert "\n" not in str(raised.value)


def test_the_same_names_in_the_same_order_need_no_matching() -> None:
    assert matched(named("crane", "bee", "crane"), "crane", "bee", "crane") == [0, 1, 2]


def test_names_without_images_do_not_count() -> None:
    assert matched(named("none", "b", "a", labels=(2, 1)), "a", "b") == [0, 1]


def test_numbers_in_place_of_names() -> None:
    eleven = tuple(map(str, range(11)))
    assert match_labels(named("0", "1", "10", "2"), eleven, "x")[0].tolist() == [0, 1, 10, 2]
    assert match_labels(named("007", "010"), eleven, "x")[0].tolist() == [7, 10]
    labels, ((level, text),) = match_labels(named("ape", "bee", labels=(1, 0)), ("0", "1"), "x")
    assert (labels.tolist(), level) == ([1, 0], logging.INFO)
    assert (
        "class_names are only numbers, so the classes of x count in its own order: 0 is 'ape', 1 is 'bee'"
        in text
    )
    assert matched(numbered(1, 0, 1), "0", "1") == [1, 0, 1]


def test_folders_in_mixed_case_draw_a_warning() -> None:
    _, ((level, text),) = match_labels(named("Zebra", "ape"), ("0", "1"), "x")
    assert level == logging.WARNING
    assert text.endswith(
        "upper case counts before lower case here; check that it did when the teacher was trained"
    )


def numbers(first: int, last: int, width: int = 1) -> list[str]:
    """Return the numbers of folders in ImageFolder's order."""
    return sorted(f"{number:0{width}}" for number in range(first, last + 1))


def notes_on_order(source: LabeledSource, count: int) -> tuple[list[int], list[tuple[int, str]]]:
    """Return the labels if only the numbers of classes are known, and the notes on their order."""
    labels, notes = match_labels(source, tuple(map(str, range(count))), "x")
    return labels.tolist(), [note for note in notes if "none of" not in note[1]]


@pytest.mark.parametrize("names", [numbers(0, 11), ["0", "1", "10", "2"], ["10", "11"]])
def test_folders_of_numbers_count_by_value_and_a_warning_names_the_other_order(names: list[str]) -> None:
    labels, ((level, text),) = notes_on_order(named(*names), 12)
    assert (labels, level) == ([int(name) for name in names], logging.WARNING)
    assert "the classes of x are matched by their numbers; if the teacher counts them in text order" in text
    assert text.endswith("as ImageFolder does, set class_names to ['0', '1', '10', ...]")
    other = match_labels(named(*names), numbers(0, 11), "x")[0]
    assert other.tolist() == [numbers(0, 11).index(name) for name in names]


@pytest.mark.parametrize("names", [numbers(0, 11, 2), ["10", "11", "03"], ["0", "1"], numbers(0, 9, 3)])
def test_nothing_is_said_if_both_orders_are_the_same(names: list[str]) -> None:
    assert notes_on_order(named(*names), 12) == ([int(name) for name in names], [])


def test_as_many_classes_with_other_numbers_keep_the_order_of_the_set() -> None:
    labels, ((level, text),) = notes_on_order(named(*numbers(1, 102)), 102)
    assert (labels, level) == (list(range(102)), logging.WARNING)
    assert "the classes of x count in its own order: 0 is '1', 101 is '99'; if the teacher counts" in text
    assert text.endswith("by their numbers, set class_names to ['1', '2', '3', ...]")
    labels, ((level, text),) = notes_on_order(named(*numbers(1, 102, 3)), 102)
    assert (labels, level) == (list(range(102)), logging.INFO)
    assert text.endswith("0 is '001', 101 is '102'")


def test_a_set_that_numbers_its_classes_itself_keeps_their_order(tmp_path: Path) -> None:
    names = numbers(0, 11)
    labels, ((level, text),) = notes_on_order(named(*names, has_own_order=True), 12)
    assert (labels, level) == (list(range(12)), logging.INFO)
    assert text.endswith("0 is '0', 11 is '9'")
    classes = tuple(map(str, range(12)))
    found = opened(parquet(tmp_path / "x.parquet", [2, 3, 11], names), classes)
    assert found.labels.tolist() == [2, 3, 11]
    of_text = opened(parquet(tmp_path / "y.parquet", ["10", "2", "9"]), classes)
    assert of_text.labels.tolist() == [10, 2, 9]


def test_numbers_of_some_classes_are_those_of_the_set() -> None:
    """A bank's shards have the number of a class and its name, which is the number again."""
    some = named("0", "3", "10", labels=(2, 0, 1), has_own_order=True)
    assert notes_on_order(some, 12) == ([10, 0, 3], [])


def test_some_of_the_classes_are_enough_but_a_warning_says_so(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    class_names = ("emu", "cow", "fox", "gnu", "hen", "bee", "ape")
    config = EvaluateConfig(data=str(class_folders(tmp_path)))
    check_test_set(config, class_names, SQUARE)
    assert caplog.record_tuples == [
        (
            "engine.datasets.test_set",
            logging.WARNING,
            f"evaluate.data: {tmp_path} has images of 3 of 7 classes; none of 'emu', 'fox', 'gnu' and others",
        )
    ]
    labels, (note,) = match_labels(numbered(0, 0), ("a", "b"), "x")
    assert note == (logging.WARNING, "evaluate.data: x has images of 1 of 2 classes; none of 'b'")
    assert labels.tolist() == [0, 0]
