"""The distiller with several feature maps."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.feed.feed import FeedBatch
from engine.models.classifier import Classifier
from tests.engine.stages.test_distill import TAPS, batches, distiller, same, train, weights

__all__ = ["batches"]


def test_the_error_of_the_features_is_the_mean_over_the_map_and_the_taps(batches: list[FeedBatch]) -> None:
    ours = distiller(taps=TAPS, w_feature=5.0)
    student, heads = copy.deepcopy(ours.student).train(), copy.deepcopy(ours.heads).train()
    ours.set_training(True)
    loss = ours.train_step(batches[0])

    def maps(model: Classifier) -> list[Tensor]:
        network, found = model.network, [model.network.conv1(model.adapted(batches[0].images))]
        for stage in network.stages:
            found.append(stage(found[-1]))
        return [F.relu(network.bn(found[3])), found[1], found[2]]

    with torch.no_grad():
        errors = [
            F.mse_loss(head(mine, theirs.shape[2:]), theirs)
            for head, mine, theirs in zip(heads, maps(student), maps(ours.teacher), strict=True)
        ]
    assert len({round(error.item(), 5) for error in errors}) == 3
    torch.testing.assert_close(loss.feature, torch.stack(errors).mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        loss.total.detach(), loss.kl + loss.ce + 5 * loss.feature, rtol=1e-5, atol=1e-6
    )


def test_every_head_learns(batches: list[FeedBatch]) -> None:
    ours = distiller(taps=TAPS)
    before = [weights(head) for head in ours.heads]
    train(ours, batches, 1)
    assert len(before) == 3
    assert not any(same(old, weights(head)) for old, head in zip(before, ours.heads, strict=True))


def test_a_map_may_be_aligned_with_several(batches: list[FeedBatch]) -> None:
    ours = distiller(taps={"relu": "stages.1", "stages.0": "stages.1"})
    train(ours, batches, 1)
    widths = [(head.conv1.in_channels, head.conv3.out_channels) for head in ours.heads]
    assert widths == [(64, 128), (32, 128), (32, 32)]  # the feature map, relu, stages.0
