import pytest

from export.errors import ExportError
from export.tensorrt.options import BuildOptions


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"workspace_bytes": 0}, "tensorrt: workspace_bytes is 0; give a positive number or none"),
        ({"refit": "yes"}, "tensorrt: refit is 'yes'; give one of no, stripped"),
        (
            {"compute_capabilities": ("8.9", "ada")},
            "tensorrt: compute_capabilities has 'ada'; give numbers like 8.9, or current",
        ),
        (
            {"compute_capabilities": ("current", "8.9")},
            "tensorrt: compute_capabilities has current among others; give it alone",
        ),
        (
            {"compute_capabilities": ("8.9", "8.9")},
            "tensorrt: compute_capabilities names one twice; give each once",
        ),
    ],
)
def test_options_no_build_can_take_are_refused(values: dict, line: str) -> None:
    with pytest.raises(ExportError) as refused:
        BuildOptions(**values)
    assert str(refused.value) == line


def test_the_current_gpu_is_taken_alone() -> None:
    assert BuildOptions(compute_capabilities=("current",)).for_current_gpu
    assert not BuildOptions(compute_capabilities=("8.9", "12.0")).for_current_gpu
