"""Expanded scales and shifts of small maps: the same numbers, and larger maps are left alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.runtime.openvino import core, expand_small_maps
from export.onnx import FILE, write_onnx
from export.spec import Input, NetworkSpec, batch

CHANNELS, ROWS = 12, 3


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, CHANNELS, 3, padding=1), nn.GroupNorm(3, CHANNELS)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (nn.functional.silu(self.norm(self.conv(images))),)


def spec(side: int) -> NetworkSpec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Normalized().eval().requires_grad_(False)
    images = Input(name="images", shape=(batch((1, 2, 4)), 4, side, side))
    return NetworkSpec(name="normalized", module=module, inputs=(images,), outputs=("y",))


@pytest.mark.parametrize(("side", "expanded"), [(2, 2), (8, 2), (9, 0)])
@pytest.mark.parametrize("hint", ["f32", "bf16"])
def test_small_maps_give_the_same_numbers(tmp_path: Path, side: int, expanded: int, hint: str) -> None:
    write_onnx(spec(side), "fp32", tmp_path)
    pixels = spec(side).example({"batch": ROWS})["images"].numpy()
    given = []
    for change in (False, True):
        model = core().read_model(tmp_path / FILE)
        model.reshape([ROWS, 4, side, side])
        if change:
            expand_small_maps(model)
            full = [1, CHANNELS, side, side]
            shapes = [
                list(op.get_output_shape(0)) for op in model.get_ops() if op.get_type_name() == "Constant"
            ]
            assert shapes.count(full) == expanded
        compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        given.append(compiled([pixels])[0].copy())
    assert np.abs(given[0]).max() > 0.5
    assert np.array_equal(*given)
