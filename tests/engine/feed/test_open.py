import subprocess
import sys
from importlib import util
from typing import Any

import pytest
import torch

from engine.errors import UserError
from engine.feed import config, open
from engine.feed.config import FeedConfig
from engine.feed.dali import DaliFeed
from engine.feed.index import Index
from engine.feed.torch_loader import TorchFeed


@pytest.fixture(params=["nvidia", "nvidia.dali"])
def _without_dali(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> Any:
        return None if name == request.param else util.find_spec(name)

    monkeypatch.setattr(config, "find_spec", find)


def test_auto_takes_dali() -> None:
    assert config.settled(FeedConfig()) == FeedConfig(kind="dali")
    assert config.settled(FeedConfig(kind="torch", threads=3)) == FeedConfig(kind="torch", threads=3)


@pytest.mark.usefixtures("_without_dali")
def test_without_dali_auto_takes_torch_and_dali_is_refused() -> None:
    assert config.settled(FeedConfig(threads=3)) == FeedConfig(kind="torch", threads=3)
    with pytest.raises(UserError, match=r"pip install 'dda-engine\[dali\]'"):
        config.settled(FeedConfig(kind="dali"))


@pytest.mark.parametrize(("kind", "expected"), [("dali", DaliFeed), ("torch", TorchFeed)])
def test_opens_the_kind(kind: Any, expected: type) -> None:
    shape: dict[str, Any] = {"codec": "raw", "image_size": (32, 32), "channels": 3, "batch_size": 4}
    feed = open.open_feed(FeedConfig(kind=kind), Index(), device=torch.device("cpu"), **shape)
    with feed:
        assert type(feed) is expected


def test_dali_is_imported_only_where_it_is_opened() -> None:
    code = "import sys, engine.feed.open; assert 'nvidia.dali' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
