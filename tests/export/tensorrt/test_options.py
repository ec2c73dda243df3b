import pytest

from export.errors import ExportError
from export.tensorrt.options import BuildOptions


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"workspace_bytes": 0}, "tensorrt: workspace_bytes is 0; set a positive number or remove it"),
        ({"refit": "yes"}, "tensorrt: refit is 'yes'; choose from no, stripped"),
        (
            {"compute_capabilities": ("8.9", "ada")},
            "tensorrt: compute_capabilities has 'ada'; use numbers like 8.9, or current",
        ),
        (
            {"compute_capabilities": ("current", "8.9")},
            "tensorrt: compute_capabilities mixes current with others; use current alone",
        ),
        (
            {"compute_capabilities": ("8.9", "8.9")},
            "tensorrt: compute_capabilities has a duplicate; list each once",
        ),
    ],
)
def test_invalid_options_are_rejected(values: dict, line: str) -> None:
    with pytest.raises(ExportError) as refused:
        BuildOptions(**values)
    assert str(refused.value) == line


def test_the_current_gpu_is_used_alone() -> None:
    assert BuildOptions(compute_capabilities=("current",)).for_current_gpu
    assert not BuildOptions(compute_capabilities=("8.9", "12.0")).for_current_gpu
