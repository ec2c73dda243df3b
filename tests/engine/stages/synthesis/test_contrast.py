"""What keeps images apart, against loops in float64."""

import math

import torch
import torch.nn.functional as F

from engine.stages.synthesis.contrast import MARGIN, TEMPERATURE, MemoryBank, repulsion


def test_repulsion_is_the_mean_over_pairs_of_a_class() -> None:
    torch.manual_seed(0)
    images, labels = 0.7 * torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1, 0])
    terms = []
    for i in range(6):
        for j in range(i):
            if labels[i] == labels[j]:
                distance = (images[i] - images[j]).square().mean().sqrt().item()
                terms.append(max(0.0, 1 - distance / MARGIN))
    assert min(terms) > 0
    assert math.isclose(repulsion(images, labels).item(), sum(terms) / len(terms), rel_tol=1e-6)


def test_distant_images_and_other_classes_do_not_repel() -> None:
    images = torch.zeros(3, 1, 4, 4)
    images[1] = 1
    assert repulsion(images, torch.tensor([0, 0, 1])) == 0
    assert repulsion(images, torch.tensor([0, 1, 2])) == 0, "no pair of a class"


def test_the_memory_banks_term_is_the_cross_entropy_of_finding_the_other_view() -> None:
    bank = MemoryBank(5, torch.Generator().manual_seed(0))
    earlier, images, views = (torch.randn(n, 5) for n in (2, 3, 3))
    alone = bank(images, views)
    bank.remember(earlier)
    with_memory = bank(images, views)

    def h(features: torch.Tensor) -> torch.Tensor:
        return F.normalize(features.double() @ bank.projection.double(), dim=1)

    for memory, found in ((torch.empty(0, 5), alone), (earlier, with_memory)):
        terms = []
        for i in range(3):
            x, positive = h(images)[i], h(views)[i]
            others = [h(images)[j] for j in range(3) if j != i] + list(h(memory))
            scores = torch.stack([x @ other for other in [positive, *others]]) / TEMPERATURE
            terms.append(-scores.log_softmax(0)[0])
        torch.testing.assert_close(found.double(), torch.stack(terms).mean(), rtol=1e-5, atol=1e-6)
    assert with_memory > alone
    bank.forget()
    torch.testing.assert_close(bank(images, views), alone)
