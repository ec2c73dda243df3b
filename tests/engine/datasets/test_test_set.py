"""The test set is optional, unless the recipe names its folder."""

from pathlib import Path

import pytest

from engine.config.evaluate import EvaluateConfig
from engine.datasets.test_set import load_test_set
from engine.errors import UserError


def test_none_gives_the_reason() -> None:
    assert load_test_set(EvaluateConfig()) == (None, "evaluate.dataset is none")


def test_missing_files_give_the_reason(monkeypatch) -> None:
    def missing(_root: Path | None) -> Path:
        raise FileNotFoundError("no Fashion-MNIST here")

    monkeypatch.setattr("engine.datasets.fashion_mnist.fashion_mnist_root", missing)
    assert load_test_set(EvaluateConfig(dataset="fashion-mnist")) == (None, "no Fashion-MNIST here")


def test_a_named_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"evaluate\.root is {tmp_path}"):
        load_test_set(EvaluateConfig(dataset="fashion-mnist", root=str(tmp_path)))
