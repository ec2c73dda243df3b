"""A command line of several commands, each with its own options."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from engine.cli.arguments import command_parser, parse
from engine.terminal import add_log_flags

Command = tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], None]]
"""Its line in --help, what adds its options, and what runs it."""


def add(
    subparsers: Any, module: str, name: str, text: str, *add_options: Callable[[ArgumentParser], None]
) -> None:
    """Add the command `name` of `python -m MODULE`, with options and the flags for the log."""
    subparser = command_parser(f"{module} {name}", text)
    for each in add_options:
        each(subparser)
    add_log_flags(subparser)
    subparsers.add_subcommand(name, subparser, help=text)


def run_one(module: str, description: str, commands: Mapping[str, Command], arguments: Sequence[str]) -> None:
    """Run the command of `python -m MODULE` that the arguments name."""
    parser = command_parser(module, description)
    subparsers = parser.add_subcommands(dest="command")
    for name, (text, add_options, _) in commands.items():
        add(subparsers, module, name, text, add_options)
    options = parse(parser, arguments)
    commands[options.command][2](options[options.command])
