"""A bank opens in webdataset, Hugging Face datasets and DALI without our code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.bank.codecs import EXTENSIONS
from engine.bank.verify import verify
from engine.config.storage import Codec
from tests.engine.bank import tiny

NUMBERS = range(3)
LOSS = {"raw": 0, "png": 0, "webp": 0, "jpeg": 12}
"""Maximum error of a value; webp has quality 100, which is lossless."""


@pytest.fixture(params=[*((codec, 3) for codec in tiny.CODECS), ("raw", 1), ("png", 1)], ids=str)
def codec(request: pytest.FixtureRequest, tmp_path: Path) -> Codec:
    codec, channels = request.param
    changes = {"codec": codec, "quality": 100 if codec == "webp" else 95, "channels": channels}
    tiny.write(tmp_path / "bank", NUMBERS, image_size=(7, 13), **changes)
    return codec


def _assert_images(codec: Codec, found: list[np.ndarray], labels: list[int]) -> None:
    """Compare images; grey ones are [H, W] or [H, W, 1] if the tool does not convert them to RGB."""
    shards = [tiny.shard(number, (7, 13)) for number in NUMBERS]
    wanted = np.concatenate([images for _, images in shards])
    images = np.stack(found).astype(int).reshape(len(wanted), 7, 13, -1)
    if images.shape[3] == 1 or (images[..., 1:] == images[..., :1]).all():
        wanted = wanted[..., :1]
    assert np.abs(images - wanted).max() <= LOSS[codec]
    assert labels == np.concatenate([rows.labels[rows.kept] for rows, _ in shards]).tolist()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset does not close its tars
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_webdataset(codec: Codec, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    tars = [str(tmp_path / "bank" / f"{number:05d}.tar") for number in NUMBERS]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    images = [sample[EXTENSIONS[codec]] for sample in samples]
    _assert_images(codec, images, [sample["json"]["label"] for sample in samples])
    assert [sample["__key__"] for sample in samples[:2]] == ["000000000000", "000000000001"]


def test_hugging_face_datasets(codec: Codec, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    opened = datasets.load_dataset(str(tmp_path / "bank"), split="train", cache_dir=str(tmp_path / "cache"))
    images = [np.asarray(image, np.uint8) for image in opened[EXTENSIONS[codec]]]
    _assert_images(codec, images, [sample["label"] for sample in opened["json"]])
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "bank" / "rows" / "*.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert rows["seed"][:] == np.concatenate([tiny.shard(number)[0].seeds for number in NUMBERS]).tolist()


def test_pandas_and_pyarrow_read_the_rows(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    from pyarrow import dataset

    tiny.write(tmp_path, NUMBERS)
    keys = np.concatenate([tiny.shard(number)[0].keys for number in NUMBERS]).tolist()
    assert pandas.read_parquet(tmp_path / "rows")["key"].tolist() == keys
    assert dataset.dataset(tmp_path / "rows").to_table()["key"].to_pylist() == keys


def test_dali(codec: Codec, tmp_path: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")
    bank = tmp_path / "bank"

    @dali.pipeline_def(batch_size=30, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline():
        encoded, described = dali.fn.readers.webdataset(
            paths=[f"{bank}/{number:05d}.tar" for number in NUMBERS],
            index_paths=[f"{bank}/index/{number:05d}.idx" for number in NUMBERS],
            ext=[EXTENSIONS[codec], "json"],
        )
        decode = dali.fn.decoders.numpy if codec == "raw" else dali.fn.decoders.image
        return decode(encoded), described

    images, described = pipeline().run()
    samples = [json.loads(bytes(np.asarray(one))) for one in described]
    _assert_images(codec, [np.asarray(image) for image in images], [sample["label"] for sample in samples])


@pytest.mark.skipif(shutil.which("tar") is None, reason="DALI's indexer calls GNU tar")
def test_the_index_is_what_dalis_own_tool_writes(tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("wds2idx")
    if not tool.exists():
        pytest.skip("no wds2idx next to this Python")
    tiny.write(tmp_path / "bank", [0])
    subprocess.run(
        [tool, tmp_path / "bank" / "00000.tar", tmp_path / "own.idx"], check=True, capture_output=True
    )
    assert (tmp_path / "own.idx").read_bytes() == (tmp_path / "bank" / "index/00000.idx").read_bytes()


def test_the_json_of_a_sample_is_plain(tmp_path: Path) -> None:
    tiny.write(tmp_path / "bank", [0])
    out = subprocess.run(
        ["tar", "-xOf", tmp_path / "bank" / "00000.tar", "000000000000.json"], check=True, capture_output=True
    ).stdout
    rows, _ = tiny.shard(0)
    assert json.loads(out) == {
        "key": 0,
        "label": rows.labels[0],
        "class_name": tiny.CLASSES[rows.labels[0]],
        "parent": -1,
        "seed": rows.seeds[0],
        "similarity": None,
        "teacher_top1": rows.teacher_top1[0],
        "confidence": float(rows.confidence[0]),
    }
    assert verify(str(tmp_path / "bank")) == []
