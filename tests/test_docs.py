"""Every command, recipe and link in README.md, CONTRIBUTING.md and docs/ works.

A command that takes seconds runs on a tiny recipe. For the others, `UNDERSTOOD` gives the reason, and their
own parser must accept them. A command that no rule covers fails.
"""

import ast
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest
import yaml
from jsonargparse import ArgumentParser

from engine.recipes.load import Recipe, load_recipe
from tests.tiny_recipe import write_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = ROOT / "docs/recipes.md"
COMMANDS = ("python -m ", "make ", "torchrun ")

RUN = (
    r"python -m \S+ --help$",
    r"python -m engine\.run --recipe my-recipe\.yaml",
    r"python -m engine\.run --out runs/mine --resume",
    r"python -m engine\.generate --(out|status)",
    r"python -m engine\.generate --plan",
    r"python -m engine\.(distill|bank) ",
    r"python -m export .*onnxruntime --run",
)
"""Commands that run on the tiny recipe."""
UNDERSTOOD = {
    r"python -m engine\.run( --recipe fashion-mnist-long)?$": "minutes; test_embedded.py runs it",
    r"python -m engine\.run --recipe (prior-free|cmi|dafl)": "minutes; test_recipes.py runs each",
    r"python -m engine\.(run|inspect) --teacher ": "224 pixels; test_own_teacher.py runs a small one",
    r"python -m \S+ .*(--trt|tensorrt)": "a GPU, or engines to build; tests/engine/exporting builds some",
    r"python -m engine\.generate .*--workers": "eight processes; tests/engine/generation/workers runs pools",
    r"python -m engine\.generate .*--ray": "a Ray cluster; tests/engine/generation/workers runs some",
    r"python -m engine\.distill --out runs/mixed --resume": "a run; its own tests continue some",
    r"python -m engine\.pretrain --only ": "minutes; tests/engine/pretraining makes tiny assets",
    r"python -m engine\.evaluate": "a test set; tests/engine/test_evaluate.py measures on some",
    r"python -m export .*--augment\.prior models/sdxl": "SDXL; tests/engine/exporting exports a tiny one",
    r"python -m bench(\.sources)? ": "minutes each; tests/bench runs their parts",
    r"torchrun ": "several interpreters; test_distributed.py trains on several ranks",
}
"""Commands that are only parsed, with the reason."""
NOT_OURS = {
    r"\. \.venv/bin/activate": "the shell's",
    r"kill -\w+ PID": "the shell's; tests/engine/generation/workers sends these signals",
    r"docker build -f deploy/Dockerfile ": "Docker and the network",
    r"ray up deploy/ray-cluster\.yaml": "a cloud",
    r"sbatch .*deploy/slurm\.sh ": "a Slurm cluster",
}
"""Lines of `sh` blocks that start no command of the project."""

PREPARING = (
    "python -m engine.run --recipe my-recipe.yaml --out runs/mine",
    "python -m engine.generate --out bank --shards 100",
)
"""Commands whose results the others need; they run once, before them."""
SMALLER = {"--shards": "1", "--budget": "20s", "--schedule.kd_steps": "4", "--metrics-port": "0"}
"""Values with which a command takes seconds and does not depend on a free port."""
MORE = {**SMALLER, "--shards": "2"}
"""Values for a command that resumes, which needs more shards than there are."""


class Block(NamedTuple):
    """A fenced or indented block of a page."""

    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    for language, fenced in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        yield Block(language, fenced)
    for indented in re.findall(
        r"(?:^\n)((?:    .*\n)+)", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M
    ):
        yield Block("", re.sub(r"^    ", "", indented, flags=re.M))


def commands_of(page: Path) -> Iterator[str]:
    """Yield the lines of `sh` blocks, and what starts like a command in other blocks and inline code."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(text):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = " ".join(re.sub(r"\s#.*", "", line).split())
            if command and (block.language == "sh" or command.startswith(COMMANDS)):
                yield command
    for inline in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
        if inline.startswith(COMMANDS):
            yield inline


ALL = list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))


def matches(command: str, rules: Iterable[str]) -> bool:
    return any(re.match(rule, command) for rule in rules)


def is_run(command: str) -> bool:
    return command not in PREPARING and matches(command, RUN) and not matches(command, UNDERSTOOD)


def smaller(command: str) -> tuple[str, ...]:
    """Return the module and arguments of a command, with values that make it take seconds."""
    module, *arguments = shlex.split(command)[2:]
    for flag, value in (MORE if "--resume" in arguments else SMALLER).items():
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = value
    takes_default = not {"--recipe", "--status", "--resume", "--help"} & {*arguments}
    if module in ("engine.generate", "engine.run") and takes_default:
        arguments += ["--recipe", "my-recipe.yaml"]
    return module, *arguments


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, s3: str) -> Path:
    """Return a folder with the inputs of the commands: a recipe, a run, and banks here and at a URL."""
    folder = tmp_path_factory.mktemp("docs")
    _write_recipe(folder)
    (folder / "package").mkdir()
    (folder / "package/module.py").write_text("from engine.models.networks import wrn_16_1 as factory\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in PREPARING:
            start(patch, smaller(command))
    shutil.copytree(folder / "runs/mine/bank", folder / "other-bank")
    put(folder / "bank", s3)
    return folder


def _write_recipe(folder: Path) -> None:
    """Write the tiny recipe with the classes and the kind of filter of the recipe in docs/recipes.md."""
    schedule = {"init_batches": 1, "rounds": 1, "kd_steps": 2}
    path = write_recipe(folder / "tiny", filter={"omega": -1.0, "quantile": None}, schedule=schedule)
    recipe = yaml.safe_load(path.read_text())
    recipe["class_names"] = ["cat", "dog", "bird"]
    (folder / "my-recipe.yaml").write_text(yaml.safe_dump(recipe | {"name": "my-recipe"}))


def put(bank: Path, bucket: str) -> None:
    """Replace the bank in the bucket by a copy of that folder."""
    import s3fs

    filesystem = s3fs.S3FileSystem()
    clear(bucket)
    filesystem.put(str(bank), f"{bucket}/bank", recursive=True)


def clear(bucket: str) -> None:
    import s3fs

    filesystem = s3fs.S3FileSystem()
    if filesystem.exists(f"{bucket}/bank"):
        filesystem.rm(f"{bucket}/bank", recursive=True)


@pytest.fixture
def workspace(prepared: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the prepared folder, which becomes the working directory."""
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder, symlinks=True)
    put(folder / "bank", s3)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def start(patch: pytest.MonkeyPatch, command: Sequence[str]) -> None:
    """Run `python -m COMMAND` in this process. Raises AssertionError if the exit code is not 0."""
    module, *arguments = command
    patch.setattr(sys, "argv", [module, *arguments])
    spec = importlib.util.find_spec(module)
    assert spec, f"{command}: no such module"
    main = f"{module}.__main__" if spec.submodule_search_locations else module
    patch.delitem(sys.modules, main, raising=False)  # runpy would warn about it
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0, f"{command}: exit code {ended.value.code}"


def test_every_command_is_covered() -> None:
    rules = [*RUN, *UNDERSTOOD, *NOT_OURS]
    assert {*PREPARING} <= {*ALL}
    assert len(ALL) > 40
    own = [command for command in ALL if not re.match(r"make |python -m [\w.]+$", command)]
    uncovered = [command for command in own if command not in PREPARING and not matches(command, rules)]
    assert not uncovered, "no rule in RUN, UNDERSTOOD or NOT_OURS matches these commands"
    unused = [rule for rule in rules if not any(matches(command, [rule]) for command in ALL)]
    assert not unused, "these rules match no command of a page"


@pytest.mark.parametrize(
    "command", {smaller(command): None for command in ALL if is_run(command)}, ids=shlex.join
)
def test_runs(command: Sequence[str], workspace: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = command[command.index("--out") + 1] if "--out" in command else ""
    if out.startswith(s3):
        clear(s3)
    elif out and "--resume" not in command:
        shutil.rmtree(workspace / out, ignore_errors=True)
    start(monkeypatch, command)
    if out and not out.startswith(s3):
        assert any((workspace / out).iterdir())


@pytest.mark.parametrize("command", [command for command in ALL if not is_run(command)])
def test_is_understood(command: str, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared)
    if command in PREPARING:
        return
    if matches(command, NOT_OURS):
        assert all((ROOT / file).is_file() for file in re.findall(r"deploy/\S+", command))
    elif command.startswith("make "):
        dry = subprocess.run(
            ["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True
        )
        assert dry.returncode == 0, dry.stderr
    elif command.startswith("torchrun "):
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(shlex.split(command)[1:])
        assert given.module
        understand(monkeypatch, [given.training_script, *given.training_script_args])
    elif len(command.split()) == 3:
        assert importlib.util.find_spec(command.split()[2])
    else:
        understand(monkeypatch, shlex.split(command)[2:])


class _UnderstoodError(BaseException):
    """The command's parser has accepted the command line."""


def understand(patch: pytest.MonkeyPatch, command: Sequence[str]) -> None:
    """Run a command until its own parser has accepted all arguments."""
    parse_args = ArgumentParser.parse_args

    def parse(parser: ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parser.instantiate(parse_args(parser, *args, **kwargs))
        raise _UnderstoodError

    patch.setattr(ArgumentParser, "parse_args", parse)
    with pytest.raises(_UnderstoodError):
        start(patch, command)


@pytest.mark.parametrize("command", ["engine.run --omega 0.5", "bench nothing"])
def test_a_wrong_command_is_not_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="exit code 2"):
        understand(monkeypatch, shlex.split(command))


def pages_with(language: str) -> list[Any]:
    return [
        pytest.param(block.text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page.read_text(encoding="utf-8")))
        if block.language == language
    ]


@pytest.mark.parametrize("text", pages_with("yaml"))
def test_a_recipe_loads(text: str, tmp_path: Path) -> None:
    """The other recipes extend the whole one in docs/recipes.md."""
    whole = next(
        block.text for block in blocks(RECIPES.read_text(encoding="utf-8")) if block.language == "yaml"
    )
    (tmp_path / "my-recipe.yaml").write_text(whole)
    (tmp_path / "other.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "other.yaml"))
    assert recipe.teacher.name == "timm:resnet34"
    given = yaml.safe_load(text)
    for section, values in given.items():
        if isinstance(values, dict):
            found = getattr(recipe, section)
            shown = {key: value for key, value in values.items() if not isinstance(value, list)}
            assert {key: getattr(found, key) for key in shown} == shown


@pytest.mark.parametrize("text", pages_with("python"))
def test_python_is_python(text: str) -> None:
    """tests/engine/bank/test_elsewhere.py runs the code."""
    ast.parse(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M) if anchor else []
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings], target


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150
    assert (ROOT / "docs/variations.png").stat().st_size < 200_000


def keys_of(owner: Any, section: str = "") -> dict[tuple[str, str], Field]:
    """Return every field of a recipe by (section, key); the section of the top level is empty."""
    kinds, found = get_type_hints(owner), {}
    for field in fields(owner):
        if is_dataclass(kinds[field.name]):
            found |= keys_of(kinds[field.name], field.name)
        else:
            found[section, field.name] = field
    return found


def test_every_key_is_in_the_page_with_its_default() -> None:
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8").split("## Every key")[1]
    shown = {}
    for introduction, table in re.findall(r"^(\S.*?):.*\n\n\| key .*\n\|.*\n((?:\|.*\n)+)", text, re.M):
        for section in re.findall(r"`(\w+)`", introduction) or [""]:
            for key, default in re.findall(r"^\| `(\w+)` \|(.*?)\|", table, re.M):
                shown[section, key] = default.strip()
    keys = keys_of(Recipe)
    assert shown.keys() == keys.keys()
    for place, default in shown.items():
        if place != ("", "name"):
            value = keys[place].default
            wanted = "" if value is MISSING else f"`{plain(value)}`"
            assert default == wanted, place


def plain(value: Any) -> str:
    """Return a default as the page shows it."""
    if isinstance(value, str):
        return value or "''"
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True)
    return text.removesuffix("\n...\n").strip()
