"""`python -m engine.bank` as a user runs it."""

from pathlib import Path

import pytest

from engine.bank.__main__ import command
from engine.cli.main import main
from tests.engine.bank import tiny


def test_verify_of_a_sound_bank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path)
    assert main(command, ["verify", str(tmp_path)]) == 0
    assert capsys.readouterr() == ("sound: 3 shards, 30 images\n", "")


def test_verify_names_each_bad_file_and_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write(tmp_path)
    (tmp_path / "rows/00000.parquet").unlink()
    (tmp_path / "index/00002.idx").write_text("")
    assert main(command, ["verify", str(tmp_path)]) == 1
    read = capsys.readouterr()
    assert [line.split()[0] for line in read.out.splitlines()] == ["rows/00000.parquet", "index/00002.idx"]
    assert read.err == f"error: {tmp_path} is not sound: 2 problems\n"


def test_merge_and_its_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, out = (str(tmp_path / name) for name in ("one", "two", "out"))
    tiny.write(one, [0])
    tiny.write(two, [1])
    for options in ([], ["--resume"]):
        assert main(command, ["merge", one, two, "--out", out, *options]) == 0
        assert capsys.readouterr() == (f"{out}: 2 shards, 20 images\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "command"),
        (["verify"], "bank"),
        (["verify", "nowhere"], "nowhere has no manifest.json"),
        (["merge", "one"], "out"),
        (["merge", "nowhere", "--out", "new"], "nowhere has no manifest.json"),
        (["verify", "nope://bank"], "nope"),
        (["burn", "bank"], "burn"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command, arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert words in line
