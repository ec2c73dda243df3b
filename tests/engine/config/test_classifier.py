"""Which mean and std are plausible for images in [0, 1]."""

import pytest

from engine.config.classifier import normalization_fault

Values = tuple[float, ...]


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5,), (0.5,)),
        ((0.0,), (1.0,)),
        ((1.0,), (1.0,)),
        ((0.0,), (1 / 255,)),
        ((0.482353, 0.4588235, 0.4078431), (1 / 255,)),
        ((0.0,), (1 / 65535,)),
        ((0.002,), (0.05,)),
    ],
    ids=["imagenet", "-1..1", "0..1", "-1..0", "0..255", "caffe", "16-bit", "dark"],
)
def test_values_that_people_use(mean: Values, std: Values) -> None:
    assert normalization_fault(mean, std) is None


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((123.675,), (58.395,), "divide by 255: mean [0.485], std [0.229]"),
        ((127.5,), (127.5,), "divide by 255: mean [0.5], std [0.5]"),
        (
            (123.0, 117.0, 104.0),
            (1.0,),
            "divide by 255: mean [0.482353, 0.458824, 0.407843], std [0.00392157]",
        ),
        ((0.0,), (255.0,), "divide by 255: mean [0.0], std [1.0]"),
        ((0.485,), (58.395,), "divide by 255: mean [0.485], std [0.229]"),
        ((123.675,), (0.229,), "divide by 255: mean [0.485], std [0.229]"),
        ((0.0019,), (0.0009,), "multiply by 255: mean [0.4845], std [0.2295]"),
        ((-1.0,), (1.0,), "do not fit images in [0, 1]"),
        ((0.5,), (2.0,), "do not fit images in [0, 1]"),
        ((30000.0,), (1.0,), "do not fit images in [0, 1]"),
        ((0.5,), (1e-6,), "do not fit images in [0, 1]"),
        ((float("nan"),), (1.0,), "finite"),
    ],
)
def test_values_that_cannot_be_meant(mean: Values, std: Values, message: str) -> None:
    assert message in (normalization_fault(mean, std) or "")
