"""When a bank can be started and continued, what a commit guarantees, and what is made again."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.bank.verify import verify
from engine.bank.writer import BankWriter
from engine.errors import UserError
from tests.engine.bank import tiny


def test_a_used_folder_needs_resume(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    before = tiny.contents(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path} is not empty.*--resume"):
        tiny.write(tmp_path)
    assert tiny.write(tmp_path, resume=True) == []
    assert tiny.contents(tmp_path) == before


def test_resume_of_nothing_begins(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    tiny.write(tmp_path, [0], resume=True)
    assert verify(str(tmp_path)) == []


def test_a_bank_without_an_irreplaceable_shard_is_left_alone(tmp_path: Path) -> None:
    tiny.write(tmp_path / "bank", [0, 1])
    (tmp_path / "bank/00002.tar").write_text("of a manifest that is lost")
    for folder, number in ((tmp_path / "bank", 2), (tmp_path / "nowhere", 0)):
        before = tiny.contents(folder) if folder.exists() else {".lock": b""}
        with pytest.raises(
            UserError, match=rf"{folder}: shard 0000{number}: is not in manifest\.json; .*restore"
        ):
            BankWriter.open(str(folder), tiny.header(), resume=True, irreplaceable=[0, 2])
        assert tiny.contents(folder) == before


def test_a_foreign_folder_and_a_file_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        tiny.write(tmp_path, resume=True)
    with pytest.raises(UserError, match=r"thesis\.tex is a file"):
        tiny.write(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "text"


def test_another_recipe_is_refused_by_its_first_difference(tmp_path: Path) -> None:
    recipe = {"betas": (0.5, 0.999), "bank": {"codec": "raw"}, "filter": {"omega": 0.5}}
    tiny.write(tmp_path, recipe=recipe)
    before = tiny.contents(tmp_path)
    recipe = recipe | {"filter": {"omega": 0.7}}
    with pytest.raises(UserError, match=r"--resume.*filter\.omega: 0\.5 -> 0\.7"):
        tiny.write(tmp_path, resume=True, recipe=recipe, settings_sha256="6" * 64)
    assert tiny.contents(tmp_path) == before


def test_settings_that_decide_no_shard_may_change(tmp_path: Path) -> None:
    tiny.write(tmp_path, [0])
    tiny.write(tmp_path, [0, 1], resume=True, recipe={"distill": {"lr": 1, "betas": (1, 2)}})
    assert verify(str(tmp_path)) == []


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    manifest = tmp_path / "manifest.json"
    whole = manifest.read_bytes()
    for altered in (
        b"",
        b"[]",
        whole[:-20],
        whole.replace(b'"boot"', b'"coat"'),
        whole.replace(b"5", b"6", 1),
    ):
        assert altered != whole
        manifest.write_bytes(altered)
        with pytest.raises(UserError, match=rf"{manifest} is damaged .*; restore it"):
            tiny.write(tmp_path, resume=True)
        assert len(list(tmp_path.glob("*.tar"))) == 3


def test_the_same_shard_again_is_nothing_and_another_is_an_error(tmp_path: Path) -> None:
    with BankWriter.open(str(tmp_path), tiny.header(), resume=False) as writer:
        rows, images = tiny.shard(3)
        entry = writer.commit(3, rows, images)
        assert writer.commit(3, rows, images) == entry
        assert dict(writer.committed) == {3: entry}
        before = tiny.contents(tmp_path)
        with pytest.raises(UserError, match="shard 00003 differs from the committed one"):
            writer.commit(3, rows, images ^ 1)
        assert tiny.contents(tmp_path) == before
        tiny.assert_same(writer.rows(3), rows)


def test_rows_and_images_that_are_of_no_shard_are_refused(tmp_path: Path) -> None:
    rows, images = tiny.shard(3)
    with BankWriter.open(str(tmp_path), tiny.header(), resume=False) as writer:
        for wrong, what in (
            ((rows, images[1:]), "not uint8"),
            ((rows, images.astype("float32")), "not uint8"),
            ((replace(rows, keys=rows.keys[::-1]), images), "do not ascend"),
            ((replace(rows, labels=rows.labels + 3), images), "a label is not in"),
            ((replace(rows, seeds=rows.seeds[1:]), images), "another length"),
        ):
            with pytest.raises(ValueError, match=what):
                writer.commit(3, *wrong)
        assert dict(writer.committed) == {}


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    before = tiny.contents(tmp_path)
    leftovers = (
        "00009.tar",
        "stats/00009.json",
        ".00007.part.tar",
        ".manifest.part.json",
        "stats/.00001.part.json",
    )
    for name in leftovers:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert [problem.file for problem in verify(str(tmp_path))] == [
        "00009.tar",
        "notes.txt",
        "stats/00009.json",
    ]
    tiny.write(tmp_path, resume=True)
    (tmp_path / "notes.txt").unlink()
    assert tiny.contents(tmp_path) == before


def test_a_bank_whose_writer_raised_can_be_continued(tmp_path: Path) -> None:
    tiny.write(tmp_path / "whole")
    with pytest.raises(ValueError, match="non-negative"):
        tiny.write(tmp_path / "bank", [0, -1])
    assert verify(str(tmp_path / "bank")) == []
    tiny.write(tmp_path / "bank", resume=True)
    assert tiny.contents(tmp_path / "bank") == tiny.contents(tmp_path / "whole")


def test_the_card_goes_when_a_bank_is_continued_and_comes_when_it_is_closed(tmp_path: Path) -> None:
    tiny.write(tmp_path, [0])
    with pytest.raises(ValueError, match="non-negative"):
        tiny.write(tmp_path, [0, 1, -1], resume=True)
    assert verify(str(tmp_path)) == []
    tiny.write(tmp_path, [0, 1], resume=True)
    assert "20 images" in (tmp_path / "README.md").read_text()
