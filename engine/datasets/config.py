"""What a run is measured on. The loop itself reads no dataset."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.config.decides import decides
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.datasets.fashion_mnist import LabeledImages


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The test set. It is read once, after the last step of training."""

    dataset: Literal["fashion-mnist", "none"] = "none"
    """Name of the test set; none leaves the accuracies null."""
    root: str | None = field(default=None, metadata=decides("execution"))
    """Folder of the dataset's files; null tries the usual places."""


def check_test_set(config: EvaluateConfig) -> None:
    """Verifies the files of the test set before any work is done; its images are not looked at.

    Raises UserError where a `root` was given and does not hold the files, or where a file is not as
    published. That there is no test set is no error.
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
    """The test images and None, or None and the reason why there are none.

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
