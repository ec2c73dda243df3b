"""Labels of batches: balanced, weighted, and a function of the seed and the batch's number."""

import pytest
import torch
from torch import Tensor

from engine.stages.labels import batch_labels, classes_covered

SIZES = [(1000, 64), (1000, 200), (3, 4), (4, 4), (10, 128), (997, 64), (5, 1)]


def labels(first: int, last: int, num_classes: int, batch_size: int, **options: object) -> list[Tensor]:
    """Of the batches from `first` to before `last`."""
    settings = {"batch_size": batch_size, "num_classes": num_classes, "seed": 0, **options}
    return [batch_labels(number, **settings) for number in range(first, last)]


def spread(batches: list[Tensor], num_classes: int) -> int:
    counts = torch.cat(batches).bincount(minlength=num_classes)
    return int(counts.max() - counts.min())


@pytest.mark.parametrize(("classes", "size"), SIZES)
def test_classes_are_balanced_within_and_over_batches(classes: int, size: int) -> None:
    batches = labels(0, 40, classes, size)
    assert all(batch.shape == (size,) for batch in batches)
    for count in range(1, 41):
        assert spread(batches[count - 1 : count], classes) <= 1
        assert spread(batches[:count], classes) <= 1
        covered = len(torch.cat(batches[:count]).unique())
        assert covered == classes_covered(count, batch_size=size, num_classes=classes, seed=0)
    assert spread(batches[7:33], classes) <= 2


def test_a_thousand_classes_at_batch_64_come_twice_in_32_batches() -> None:
    counts = torch.cat(labels(0, 32, 1000, 64)).bincount(minlength=1000)
    assert {2, 3} == set(counts.tolist())


def test_the_seed_decides_the_order() -> None:
    one, same, other = (torch.cat(labels(0, 4, 50, 8, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_later_rounds_have_another_order() -> None:
    assert not torch.equal(*labels(0, 2, 100, 100))


def test_weights_give_each_class_its_share() -> None:
    weights = [1.0, 2.0, 0.0, 5.0, 0.01]
    found = torch.cat(labels(0, 500, 5, 8, weights=weights)).bincount(minlength=5)
    expected = torch.tensor(weights) / sum(weights) * 4000
    assert found[2] == 0
    assert (found - expected).abs().max() < 4
    later = torch.cat(labels(200, 300, 5, 8, weights=weights)).bincount(minlength=5)
    assert (later - expected / 5).abs().max() < 4


def test_rare_classes_are_counted_when_they_come() -> None:
    weights = [1.0, 0.01, 0.0]
    for batches in (1, 100):
        seen = torch.cat(labels(0, batches, 3, 4, weights=weights)).unique()
        assert classes_covered(batches, batch_size=4, num_classes=3, seed=0, weights=weights) == len(seen)


def test_the_warm_up_batch_has_labels() -> None:
    assert spread(labels(-1, 0, 3, 4), 3) == 1
    assert labels(-1, 0, 3, 4, weights=[1.0, 0.0, 1.0])[0].unique().tolist() == [0, 2]
