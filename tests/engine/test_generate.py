"""`python -m engine.generate`: shards that are functions of recipe, seed and number."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.bank.reader import BankReader
from engine.bank.verify import verify
from engine.cli.main import main
from engine.generate import command
from tests.tiny_pipelines import put_tiny_autoencoder
from tests.tiny_recipe import write_recipe


def generate(recipe: Path, out: Path | str, *arguments: str) -> int:
    return main(command, ["--recipe", str(recipe), "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def bank(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("banks") / "bank"
    assert generate(recipe, out, "--shards", "3") == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_bank_is_sound_and_holds_the_recipe(bank: Path, recipe: Path) -> None:
    assert verify(str(bank)) == []
    header = BankReader.open(str(bank)).header
    assert header.recipe["synthesize"]["steps"] == 2
    assert header.channels == 1, "the teacher is grey"
    assert header.facts["teacher"]["name"] == "engine:wrn_16_1"
    assert len(header.facts["diffusion prior"]["sha256"]) == 64
    assert str(recipe.parent / "prior") in (bank / "README.md").read_text()


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(
    recipe: Path, bank: Path, tmp_path: Path
) -> None:
    assert generate(recipe, tmp_path / "again", "--shards", "3") == 0
    assert contents(tmp_path / "again") == contents(bank)
    assert generate(recipe, tmp_path / "other", "--seed", "1") == 0
    assert contents(tmp_path / "other")["00000.tar"] != contents(bank)["00000.tar"]


@pytest.mark.parametrize("start", ["renew", "meta", "reuse", "reinit"])
def test_a_shard_does_not_depend_on_those_made_before_it(start: str, tmp_path: Path) -> None:
    """Shard 1 loses a file and is made again by a process that makes no other shard."""
    warmup = {"warmup_steps": 0 if start == "reinit" else 1}
    recipe = write_recipe(tmp_path / "recipe", synthesize={"start": start, **warmup})
    out = tmp_path / "bank"
    assert generate(recipe, out, "--shards", "3") == 0
    before = contents(out)
    (out / "rows/00001.parquet").unlink()
    assert generate(recipe, out, "--shards", "3", "--resume") == 0
    assert contents(out) == before


def test_a_bank_grows_without_rewriting(
    recipe: Path, bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bank"
    assert generate(recipe, out, "--shards", "1") == 0
    written = {path.name: path.stat().st_mtime_ns for path in out.rglob("00000*")}
    assert len(written) == 4
    assert generate(recipe, out, "--shards", "3", "--resume") == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.rglob("00000*")} == written
    assert contents(out) == contents(bank)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{out}: 2 shards made, 1 already there; ")


def test_a_bank_at_a_url(recipe: Path, bank: Path) -> None:
    url = "memory://generated"
    assert generate(recipe, url, "--shards", "2") == 0
    assert generate(recipe, url, "--shards", "3", "--resume") == 0
    assert verify(url) == []
    assert BankReader.open(url).images_sha256 == BankReader.open(str(bank)).images_sha256


def test_a_tiny_autoencoder_in_the_priors_folder_decodes_the_variations(tmp_path: Path) -> None:
    """Its last layer is changed to paint everything in one colour."""
    recipe = write_recipe(tmp_path / "recipe")
    put_tiny_autoencoder(tmp_path / "recipe" / "prior")
    weights = tmp_path / "recipe/prior/vae/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["decoder.layers.6.weight"].zero_()
    state["decoder.layers.6.bias"][:] = torch.tensor([1.0, 0.2, 0.0])
    save_file(state, weights)
    assert generate(recipe, tmp_path / "bank", "--shards", "1", "--storage.codec", "raw") == 0
    reader = BankReader.open(str(tmp_path / "bank"))
    is_variation = reader.rows(0).parents[reader.rows(0).kept] >= 0
    images = reader.images(0, range(len(is_variation)))
    assert is_variation.any()
    assert (images[is_variation] == 106).all(), "the luma, as the teacher is grey"
    assert not (images[~is_variation] == (255, 51, 0)).all((1, 2, 3)).any()


def touch_teacher(folder: Path) -> None:
    path = folder / "teacher.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (None, [], "is not empty; continue it with --resume"),
        (None, ["--resume", "--filter.quantile", "0.4"], "filter.quantile: 0.3 -> 0.4"),
        (touch_teacher, ["--resume"], "teacher.sha256"),
    ],
    ids=["not asked to resume", "another setting", "other weights"],
)
def test_a_bank_that_cannot_be_continued_is_one_line_and_stays(
    change: Callable[[Path], None] | None,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, out = write_recipe(tmp_path / "recipe"), tmp_path / "bank"
    assert generate(recipe, out) == 0
    before = contents(out)
    if change is not None:
        change(tmp_path / "recipe")
    assert generate(recipe, out, *arguments) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert contents(out) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--out BANK is missing"),
        (["--out", "bank", "--shards", "0"], "--shards is 0"),
        (["--out", "bank", "--storage.quality", "0"], "storage.quality"),
        (["--out", "nosuch://bank"], "nosuch"),
    ],
)
def test_a_bad_command_is_one_line(
    arguments: list[str], words: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command, ["--recipe", str(recipe), *arguments]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_weights_that_cannot_be_read_leave_no_bank(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    (tmp_path / "recipe/teacher.safetensors").write_bytes(b"nothing")
    assert generate(recipe, tmp_path / "bank") == 2
    assert not (tmp_path / "bank").exists()


def test_the_licence_of_a_model_card_is_in_the_dataset_card(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe")
    (tmp_path / "recipe/prior/README.md").write_text("---\nlicense: openrail++\n---\n# A prior\n")
    assert generate(recipe, tmp_path / "bank") == 0
    assert "openrail++" in (tmp_path / "bank/README.md").read_text()
    facts = json.loads((tmp_path / "bank/manifest.json").read_text())["header"]["facts"]
    assert facts["diffusion prior"]["licence"] == "openrail++"
    assert facts["CLIP"]["licence"] == "not stated in its files"


def test_a_teacher_that_sees_no_labels_in_the_images_is_reported(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny teacher is random and synthesis takes one step, so it sees one class in all images."""
    alone = ("--augment.method", "none", "--filter.method", "none", "--filter.model", "")
    quick = ("--augment.class_condition", "none", "--synthesize.steps", "1", "--synthesize.lr", "1e-6")
    assert generate(recipe, tmp_path / "bank", *alone, *quick, "--synthesize.batch_size", "33") == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2, "after the first shard and in the end"
    for line in warnings:
        assert "of 33 synthesized images, and chance is" in line
        assert "raise synthesize.steps" in line
