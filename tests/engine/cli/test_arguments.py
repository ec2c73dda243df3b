"""A command line is read before it is parsed, because the parser's defaults depend on it."""

from argparse import ArgumentError

import pytest

from engine.cli.arguments import CommandLine
from engine.cli.main import main
from engine.errors import UserError
from engine.run import command


def test_flags_have_the_value_that_follows_or_is_joined() -> None:
    line = CommandLine.read(
        ["--out", "a", "--resume", "--seed", "-1", "--name=b", "--out=c=d", "--bank", "-"]
    )
    assert line.flags == {"out": "c=d", "resume": None, "seed": "-1", "name": "b", "bank": "-"}
    assert [line.given(flag) for flag in ("resume", "recipe")] == [True, False]
    assert [line.value(flag) for flag in ("name", "recipe")] == ["b", None]


@pytest.mark.parametrize("following", [["--resume"], ["-x"], []])
def test_a_flag_without_a_value_is_refused_when_its_value_is_read(following: list[str]) -> None:
    line = CommandLine.read(["--out", *following])
    with pytest.raises(ArgumentError, match="argument --out: expected one argument"):
        line.value("out")


def test_the_short_flags_are_settings() -> None:
    assert CommandLine.read(["--batch", "4"]).value("filter.micro_batch") == "4"


@pytest.mark.parametrize(
    ("arguments", "base_name", "name"),
    [
        ([], None, "fashion-mnist"),
        ([], "bank", "bank"),
        (["--name", "mine"], "bank", "mine"),
        (["--recipe", "fashion-mnist-long"], "bank", "fashion-mnist-long"),
        (["--recipe=fashion-mnist-long", "--name=mine"], None, "mine"),
    ],
)
def test_the_name_is_known_before_the_recipe_is_parsed(
    arguments: list[str], base_name: str | None, name: str
) -> None:
    assert CommandLine.read(arguments).recipe_name(base_name) == name


def test_an_unknown_or_empty_recipe_is_refused() -> None:
    for name in ("nothing", ""):
        with pytest.raises(UserError, match=f"no recipe '{name}'"):
            CommandLine.read([f"--recipe={name}"]).recipe_name()


def test_a_missing_value_ends_a_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command, ["--recipe"]) == 2
    assert capsys.readouterr().err == (
        "error: argument --recipe: expected one argument; --help lists the options\n"
    )
