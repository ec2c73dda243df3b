"""The costs of common networks that are written down are those of the networks."""

import pytest

from engine.models.proposal import LARGE, SMALL, cost
from tests.classifiers import classifier_config


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        *((f"engine:{name}", 32, about) for name, about in SMALL.items()),
        *((f"timm:{name}", 224, about) for name, about in LARGE.items()),
    ],
)
def test_written_costs_are_right(name: str, size: int, millions: float) -> None:
    assert cost(classifier_config(name=name, image_size=size)) == pytest.approx(1e6 * millions, rel=0.03)
