"""The doubling and its convolution against torch's own two steps."""

import pytest
import torch
import torch.nn.functional as F

from engine.models.upsampled_conv import UpsampledConv2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (3, 5, 2, 7), (0, 2, 3, 3)])
def test_it_is_upsampling_and_then_convolution(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = UpsampledConv2d(shape[1], 4).double()
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    expected = F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, layer.bias, padding=1)
    actual = layer(x)
    torch.testing.assert_close(actual, expected)
    wanted = [x, layer.weight, layer.bias]
    grad = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_in_bfloat16_it_is_as_exact_as_the_two_steps() -> None:
    torch.manual_seed(0)
    layer, x = UpsampledConv2d(32, 16), torch.randn(4, 32, 8, 8)
    exact = F.conv2d(
        F.interpolate(x.double(), scale_factor=2), layer.weight.double(), layer.bias.double(), padding=1
    )
    with torch.autocast("cpu", torch.bfloat16):
        one = layer(x)
        two = F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, layer.bias, padding=1)
    assert one.dtype == two.dtype == torch.bfloat16
    assert (one - exact).square().mean() < 1.1 * (two - exact).square().mean()
