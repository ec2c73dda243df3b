import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.models.align import AlignHead


def test_equals_the_written_out_layers_with_pooling() -> None:
    torch.manual_seed(0)
    head = AlignHead(3, 4).double().eval()
    for bn in (head.bn1, head.bn2):
        nn.init.uniform_(bn.running_mean, -1, 1)
        nn.init.uniform_(bn.running_var, 0.5, 2)
        nn.init.uniform_(bn.weight, 0.5, 2)
        nn.init.uniform_(bn.bias, -1, 1)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def norm_relu(y: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
        mean, var, weight, bias = (
            t.view(1, -1, 1, 1) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        )
        return ((y - mean) / (var + bn.eps).sqrt() * weight + bias).clamp(min=0)

    pooled = x.view(2, 3, 4, 2, 4, 2).mean((3, 5))
    h = norm_relu(torch.einsum("oc,bchw->bohw", head.conv1.weight[:, :, 0, 0], pooled), head.bn1)
    h = norm_relu(F.conv2d(h, head.conv2.weight, padding=1), head.bn2)
    expected = torch.einsum("oc,bchw->bohw", head.conv3.weight[:, :, 0, 0], h)
    torch.testing.assert_close(head(x, (4, 4)), expected)


def test_hidden_width_is_twice_the_teachers_and_nothing_but_batch_norm_has_a_bias() -> None:
    head = AlignHead(64, 128)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "conv1.weight": (256, 64, 1, 1),
        "bn1.weight": (256,),
        "bn1.bias": (256,),
        "conv2.weight": (256, 256, 3, 3),
        "bn2.weight": (256,),
        "bn2.bias": (256,),
        "conv3.weight": (128, 256, 1, 1),
    }


@pytest.mark.parametrize(("channels", "hidden"), [(512, 1024), (2048, 1024)])
def test_hidden_width_is_bounded(channels: int, hidden: int) -> None:
    with torch.device("meta"):
        head = AlignHead(64, channels)
    assert head.conv2.weight.shape == (hidden, hidden, 3, 3)
    assert head.conv3.weight.shape == (channels, hidden, 1, 1)


def test_keeps_the_size_where_the_maps_match() -> None:
    head = AlignHead(2, 3).eval()
    x = torch.zeros(1, 2, 4, 4)
    x[0, :, 1, 2] = 5.0  # a pooled map would spread this spot evenly
    assert head(x, (4, 4)).shape == (1, 3, 4, 4)
    assert head(x, (4, 4))[0, 0].std() > 0
