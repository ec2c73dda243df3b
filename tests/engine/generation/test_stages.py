"""Images for a grey teacher have three equal channels: the luma of the original."""

import torch

from engine.generation.stages import to_gray


def test_grey_is_the_rounded_luma_and_stays_what_it_is() -> None:
    images = torch.tensor([[10, 20, 30], [255, 255, 255], [255, 0, 0]], dtype=torch.uint8).view(3, 3, 1, 1)
    grey = to_gray(images)
    assert grey.dtype == torch.uint8
    assert grey[:, 0].flatten().tolist() == [18, 255, 76]
    assert (grey == grey[:, :1]).all()
    every = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(-1, 3, 2, 2)
    assert torch.equal(to_gray(every), every)
