"""Settings of the filter that are refused."""

import math
from typing import Any

import pytest

from engine.config.filter import FilterConfig
from engine.errors import UserError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"omega": 1.7}, "filter.omega must lie in [-1, 1], got 1.7", id="omega-high"),
        pytest.param({"omega": -1.1}, "filter.omega must lie in [-1, 1], got -1.1", id="omega-low"),
        pytest.param({"omega": math.nan}, "filter.omega must lie in [-1, 1], got nan", id="omega-nan"),
        pytest.param({"quantile": 1.0}, "filter.quantile must lie in [0, 1), got 1.0", id="quantile"),
        pytest.param({}, "filter.omega is None and filter.quantile is None; set one", id="neither"),
        pytest.param({"omega": 0.5, "quantile": 0.5}, "set one and leave the other null", id="both"),
        pytest.param(
            {"omega": 0.5, "min_confidence": 1.0}, "filter.min_confidence must lie", id="confidence"
        ),
        pytest.param(
            {"omega": 0.5, "micro_batch": 0}, "filter.micro_batch must be at least 1", id="micro-batch"
        ),
        pytest.param({"omega": 0.5, "model": ""}, "filter.model is empty", id="model"),
        pytest.param({"method": "clip", "model": ""}, "filter.model is empty", id="clip-without-model"),
        pytest.param(
            {"omega": 0.5, "max_duplicate": -1.0},
            "filter.max_duplicate must lie in (-1, 1], got -1",
            id="least",
        ),
        pytest.param({"omega": 0.5, "max_duplicate": 1.1}, "filter.max_duplicate must lie", id="most"),
        pytest.param({"omega": 0.5, "max_duplicate": math.nan}, "in (-1, 1], got nan", id="duplicate-nan"),
        pytest.param(
            {"omega": 0.5, "per_class": True},
            "filter.per_class is true, but filter.quantile is null; set filter.quantile",
            id="per-class",
        ),
        pytest.param(
            {"model": "", "criterion": "text"}, "filter.model is empty", id="criterion-without-model"
        ),
        pytest.param(
            {"model": "", "max_duplicate": 0.9}, "filter.model is empty", id="duplicates-without-model"
        ),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        FilterConfig(**{"model": "unused"} | change)
    assert message in str(caught.value)
