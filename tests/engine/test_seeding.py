"""Draws are named, not placed: the same name gives the same numbers whatever surrounds it."""

import itertools

import pytest
import torch

from engine.seeding import derive_seed, generator, randn_per_image


def test_seeds_are_fixed_across_versions_and_processes() -> None:
    assert derive_seed(0, "augment", 7, 1) == 884548396256598234


def test_seeds_are_63_bit_and_differ_by_every_part() -> None:
    names = [(s, p, i) for s, p, i in itertools.product(range(4), ("augment", "distill"), range(500))]
    seeds = {derive_seed(*name) for name in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


@pytest.mark.parametrize(
    ("one", "other"), [((1, 23), (12, 3)), ((1, "2", 3), (1, 23)), ((0, "a", "b"), (0, "ab"))], ids=str
)
def test_parts_do_not_run_together(one: tuple, other: tuple) -> None:
    assert derive_seed(*one) != derive_seed(*other)


def test_generator_is_seeded_by_name_alone() -> None:
    first = torch.rand(5, generator=generator(3, "x", 1))
    torch.manual_seed(99)
    assert torch.equal(torch.rand(5, generator=generator(3, "x", 1)), first)
    assert not torch.equal(torch.rand(5, generator=generator(3, "x", 2)), first)


@pytest.mark.parametrize("shape", [(3,), (4, 8, 8), (1, 5, 7)], ids=str)
def test_a_row_is_independent_of_its_batch(shape: tuple[int, ...]) -> None:
    seeds = [derive_seed(0, i) for i in range(7)]
    whole = randn_per_image(seeds, shape)
    assert whole.shape == (7, *shape)
    assert whole.dtype == torch.float32
    for i, seed in enumerate(seeds):
        assert torch.equal(randn_per_image([seed], shape)[0], whole[i])
    assert torch.equal(randn_per_image(reversed(seeds), shape), whole.flip(0))


def test_seeds_may_come_as_a_tensor() -> None:
    seeds = [derive_seed(0, i) for i in range(3)]
    assert torch.equal(randn_per_image(torch.tensor(seeds), (2, 2)), randn_per_image(seeds, (2, 2)))


def test_no_seeds_give_no_rows() -> None:
    assert randn_per_image([], (4, 2)).shape == (0, 4, 2)


def test_noise_is_standard_normal() -> None:
    noise = randn_per_image([derive_seed(0, i) for i in range(64)], (1024,))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs((noise[:-1] * noise[1:]).mean()) < 0.02  # rows of different seeds are uncorrelated
