"""The test set that a recipe names."""

from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.evaluate import EvaluateConfig
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.datasets.fashion_mnist import LabeledImages


def check_test_set(config: EvaluateConfig) -> None:
    """Verify the files of the test set before any work is done, without reading its images.

    Raises UserError if a `root` is given that does not hold the files, or if a file is not as published. A
    missing test set is not an error.
    """
    if config.dataset == "none":
        return
    from engine.datasets import fashion_mnist
    from engine.datasets.fetch import read_verified

    try:
        for path in fashion_mnist.files("test", _root(config)):
            read_verified(path)
    except FileNotFoundError as error:
        if config.root:
            raise _wrong_root(config, error) from None


def load_test_set(config: EvaluateConfig) -> "tuple[LabeledImages | None, str | None]":
    """Return the test images and None, or None and the reason why there are none.

    Raises UserError as `check_test_set` does.
    """
    if config.dataset == "none":
        return None, "evaluate.dataset is none"
    from engine.datasets import fashion_mnist

    try:
        return fashion_mnist.load("test", _root(config)), None
    except FileNotFoundError as error:
        if config.root:
            raise _wrong_root(config, error) from None
        return None, str(error)


def _root(config: EvaluateConfig) -> Path | None:
    return Path(config.root) if config.root else None


def _wrong_root(config: EvaluateConfig, error: FileNotFoundError) -> UserError:
    return UserError(
        f"evaluate.root {config.root} does not hold the files of {config.dataset} ({error});"
        " give the folder of the idx.gz files, or null to try the usual places"
    )
