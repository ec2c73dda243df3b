import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine.batch import ImageBatch
from engine.errors import UserError
from engine.memory_bank import Bank
from engine.seeding import generator

SHAPE = (3, 4, 5)


def batch(labels: list[int], first_key: int = 0) -> ImageBatch:
    keys = torch.arange(first_key, first_key + len(labels))
    draw = generator(0, "images", first_key)
    return ImageBatch(
        images=torch.randint(0, 256, (len(labels), *SHAPE), generator=draw, dtype=torch.uint8),
        labels=torch.tensor(labels, dtype=torch.int64),
        keys=keys,
        parents=keys - 1,
        seeds=keys * 1000,
    )


def filled(*labels: list[int]) -> Bank:
    bank, key = Bank(10, SHAPE), 0
    for some in labels:
        bank.add(batch(some, key), torch.tensor(some, dtype=torch.int64))
        key += len(some)
    return bank


def test_holds_every_row_in_the_order_of_addition() -> None:
    bank = Bank(10, SHAPE)
    batches = [batch([i % 10] * size, first_key=100 * i) for i, size in enumerate([1, 7, 2, 30, 0, 5])]
    for some in batches:
        bank.add(some, (some.labels + 1) % 10)
    everything = ImageBatch.cat(batches)
    assert len(bank) == 45
    assert torch.equal(bank.images, everything.images)
    assert torch.equal(bank.labels, everything.labels)
    assert torch.equal(bank.keys, everything.keys)
    assert torch.equal(bank.teacher_top1, (everything.labels + 1) % 10)


def test_addition_copies_old_rows_a_constant_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, copied = Bank(10, SHAPE), []
    reserve = Bank._reserve

    def counting(self: Bank, rows: int) -> None:
        before = self._columns["images"].data_ptr()
        reserve(self, rows)
        copied.append(len(self) if self._columns["images"].data_ptr() != before else 0)

    monkeypatch.setattr(Bank, "_reserve", counting)
    for key in range(300):
        bank.add(batch([key % 10], key), torch.tensor([0]))
    assert sum(copied) < 2 * len(bank)


def test_refuses_a_key_that_is_there_already() -> None:
    bank = filled([1, 2, 3])
    with pytest.raises(AssertionError, match="key"):
        bank.add(batch([4], first_key=2), torch.tensor([4]))
    assert len(bank) == 3


@pytest.mark.parametrize("balance", [True, False], ids=["balanced", "uniform"])
def test_sample_gives_rows_of_the_bank(balance: bool) -> None:
    bank = Bank(10, SHAPE)
    some = batch([0, 3, 3, 7, 9])
    bank.add(some, torch.tensor([0, 3, 4, 7, 1]))
    sample = bank.sample(200, generator(0, "draw"), balance)
    rows = {row.numpy().tobytes(): i for i, row in enumerate(some.images)}
    found = [rows[image.numpy().tobytes()] for image in sample.images]
    assert set(found) == {0, 1, 2, 3, 4}
    assert sample.labels.tolist() == [[0, 3, 3, 7, 9][i] for i in found]
    assert sample.agrees.tolist() == [[True, True, False, True, False][i] for i in found]


@pytest.mark.parametrize("balance", [True, False], ids=["balanced", "uniform"])
def test_sample_is_decided_by_the_generator_alone(balance: bool) -> None:
    bank = filled([0, 1, 1, 2], [3, 3, 3])
    first, again, other = (bank.sample(64, generator(0, "draw", i), balance) for i in (5, 5, 6))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_class_balance_draws_the_classes_present_evenly_and_their_rows_evenly() -> None:
    bank = filled([2] * 90 + [5] * 9, [7])
    sample = bank.sample(30000, generator(0, "draw"), class_balance=True)
    counts = sample.labels.bincount(minlength=10)
    assert counts.nonzero()[:, 0].tolist() == [2, 5, 7]
    assert (counts[[2, 5, 7]] - 10000).abs().max() < 500  # six standard deviations
    fives = {row.numpy().tobytes() for row in sample.images[sample.labels == 5]}
    assert len(fives) == 9


def test_without_balance_the_classes_keep_their_shares() -> None:
    counts = (
        filled([2] * 90 + [5] * 10).sample(10000, generator(0, "draw"), False).labels.bincount(minlength=10)
    )
    assert abs(counts[5] - 1000) < 180


def test_rows_added_after_a_sample_are_drawn_too() -> None:
    bank = filled([0] * 4)
    bank.sample(8, generator(0, "draw"), class_balance=True)
    bank.add(batch([8, 8], first_key=50), torch.tensor([8, 8]))
    assert set(bank.sample(64, generator(0, "draw"), class_balance=True).labels.tolist()) == {0, 8}


def test_hash_ignores_the_order_of_addition_and_notices_any_change() -> None:
    a, b = batch([1, 2]), batch([3], first_key=9)
    forward, backward = Bank(10, SHAPE), Bank(10, SHAPE)
    for bank, order in ((forward, (a, b)), (backward, (b, a))):
        for some in order:
            bank.add(some, some.labels)
    assert forward.sha256() == backward.sha256()
    for name in ("images", "labels", "keys", "parents", "seeds"):
        changed = Bank(10, SHAPE)
        getattr(a, name)[0] += 1 if name != "keys" else 5
        changed.add(ImageBatch.cat([a, b]), torch.tensor([0, 0, 0]))
        getattr(a, name)[0] -= 1 if name != "keys" else 5
        assert changed.sha256() != forward.sha256(), name


@pytest.mark.parametrize("labels", [[1, 2, 2, 9], []], ids=["four", "empty"])
def test_load_gives_back_what_was_saved_and_it_can_grow(labels: list[int], tmp_path: Path) -> None:
    bank = filled(labels)
    bank.save(tmp_path / "bank.safetensors")
    loaded = Bank.load(tmp_path / "bank.safetensors")
    for one in (bank, loaded):
        one.add(batch([4, 4], first_key=77), torch.tensor([4, 3]))
    assert (loaded.num_classes, loaded.image_shape) == (10, SHAPE)
    assert loaded.sha256() == bank.sha256()
    assert torch.equal(loaded.teacher_top1, bank.teacher_top1)
    assert [path.name for path in tmp_path.iterdir()] == ["bank.safetensors"]


def test_saved_bytes_are_a_function_of_the_content(tmp_path: Path) -> None:
    digests = set()
    for name, parts in (("a", ([1, 2, 3],)), ("b", ([1], [2, 3]))):
        bank = Bank(10, SHAPE)
        everything, start = batch([1, 2, 3]), 0
        for part in parts:
            rows = everything[start : start + len(part)]
            bank.add(rows, rows.labels)
            start += len(part)
        bank.save(tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_save_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bank"
    filled([1]).save(path)
    bigger = filled([1, 2, 3])

    def full(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        bigger.save(path)
    assert len(Bank.load(path)) == 1


def damage(path: Path, **changes: torch.Tensor | None) -> None:
    """Write four good rows and their checksum, except for `changes`; None leaves a column out."""
    filled([1, 2, 2, 9]).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    columns = {name: value for name, value in (load_file(path) | changes).items() if value is not None}
    save_file(columns, path, metadata)


DAMAGE = {
    "missing column": ({"labels": None}, "labels"),
    "dtype": ({"images": torch.zeros(4, *SHAPE)}, "uint8"),
    "grey": ({"images": torch.zeros(4, 1, 4, 5, dtype=torch.uint8)}, "uint8"),
    "length": ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
    "label range": ({"labels": torch.full((4,), 10)}, "labels"),
    "teacher range": ({"teacher_top1": torch.full((4,), -1)}, "teacher_top1"),
    "twice a key": ({"keys": torch.zeros(4, dtype=torch.int64)}, "keys"),
    "altered pixels": ({"images": torch.zeros(4, *SHAPE, dtype=torch.uint8)}, "checksum"),
    "altered teacher": ({"teacher_top1": torch.zeros(4, dtype=torch.int64)}, "checksum"),
}


@pytest.mark.parametrize(("changes", "word"), DAMAGE.values(), ids=DAMAGE.keys())
def test_load_refuses_a_damaged_file(changes: dict, word: str, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    damage(path, **changes)
    with pytest.raises(UserError, match=word) as caught:
        Bank.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_of_the_damage_tests_loads_without_damage(tmp_path: Path) -> None:
    damage(tmp_path / "bank")
    assert len(Bank.load(tmp_path / "bank")) == 4


@pytest.mark.parametrize(
    "content", [None, b"", b"not a bank", "half"], ids=["missing", "empty", "text", "half"]
)
def test_load_refuses_what_is_no_file_of_ours(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "bank"
    if content == "half":
        filled([1, 2]).save(path)
        path.write_bytes(path.read_bytes()[:-40])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        Bank.load(path)


HEADERS = {
    "none": None,
    "another": {"format": "pt"},
    "not json": {"bank": "{"},
    "not a dict": {"bank": "[]"},
    "no checksum": {"bank": '{"num_classes": 10}'},
    "classes": {"bank": '{"num_classes": "ten", "sha256": ""}'},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_load_refuses_a_file_with_another_header(header: dict[str, str] | None, tmp_path: Path) -> None:
    filled([1]).save(tmp_path / "bank")
    save_file(load_file(tmp_path / "bank"), tmp_path / "bank", header)
    with pytest.raises(UserError, match=str(tmp_path / "bank")):
        Bank.load(tmp_path / "bank")
