"""The terms that weigh on images besides their class, against values written out in float64."""

from itertools import combinations

import pytest
import timm
import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.models.feature_map import find_feature_map
from engine.models.inverting import choose_statistics
from engine.models.networks import lenet_5, wrn_16_1
from engine.stages.synthesis.statistics import image_prior, measuring, similarity_entropy, total_variation
from kernels.fuse import measured

CLASSES = 5


def classifier(network: nn.Module, in_channels: int = 3) -> Classifier:
    made = Classifier(
        network,
        num_classes=CLASSES,
        in_channels=in_channels,
        mean=(0.5,),
        std=(0.25,),
        feature_path=None,
        name="net",
    )
    return made.eval().requires_grad_(False)


def entropy_written_out(tokens: Tensor) -> float:
    """Return the mean entropy by a sum over 2,000 points and all pairs, one at a time."""
    found = []
    for image in tokens.double():
        pairs = [torch.cosine_similarity(a, b, 0).item() for a, b in combinations(image, 2)]
        points = torch.linspace(-1.3, 1.3, 2000, dtype=torch.float64)
        density = sum(torch.exp(-0.5 * ((points - s) / 0.05) ** 2) for s in pairs)
        density = density / (len(pairs) * 0.05 * (2 * torch.pi) ** 0.5)
        found.append(torch.trapezoid(torch.special.entr(density), points).item())
    return sum(found) / len(found)


@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_entropy_equals_the_sum_over_pairs(spread: float) -> None:
    torch.manual_seed(0)
    tokens = 1 + spread * torch.randn(2, 9, 6)
    assert similarity_entropy(tokens).item() == pytest.approx(entropy_written_out(tokens), abs=0.02)


def test_entropy_has_the_gradient_that_differences_give() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(similarity_entropy, tokens)


def test_entropy_rises_if_patches_differ() -> None:
    torch.manual_seed(0)
    one = torch.ones(1, 20, 8)
    assert similarity_entropy(one + 0.01 * torch.randn(1, 20, 8)) < similarity_entropy(torch.randn(1, 20, 8))


def test_long_sequences_are_sampled_evenly() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(1, 199, 8)
    torch.testing.assert_close(similarity_entropy(tokens), similarity_entropy(tokens[:, ::2]))


def test_image_prior_equals_the_sum_over_neighbours() -> None:
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = 0.0
    for image in x:
        for down, right in ((1, 0), (0, 1), (1, 1), (1, -1)):
            squares = [
                (image[:, i + down, j + right] - image[:, i, j]).square()
                for i in range(5 - down)
                for j in range(6)
                if 0 <= j + right < 6
            ]
            expected += torch.cat(squares).mean().sqrt().item() / 2
    assert total_variation(x).item() == pytest.approx(expected, rel=1e-5)
    norms = sum(image.square().mean().sqrt().item() / 2 for image in x)
    assert image_prior(x).item() == pytest.approx(expected + 0.1 * norms, rel=1e-5)
    assert total_variation(torch.full((1, 3, 4, 4), 0.7)) < 1e-3


def test_a_teacher_with_batch_norm_is_held_to_it() -> None:
    teacher, images = classifier(wrn_16_1(CLASSES)), torch.rand(2, 3, 32, 32)
    choice = choose_statistics(teacher, None, (32, 32))
    assert (choice.kind, len(choice.norms)) == ("batch_norm", 13)
    torch.testing.assert_close(measuring(teacher, choice)(images), measured(teacher)(images))


@pytest.mark.parametrize("wanted", [None, "image"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_a_teacher_without_is_held_to_the_image_prior(in_channels: int, wanted: str | None) -> None:
    teacher = classifier(lenet_5(CLASSES, in_channels), in_channels)
    images = torch.rand(2, 3, 32, 32)
    logits, loss = measuring(teacher, choose_statistics(teacher, wanted, (32, 32)))(images)
    torch.testing.assert_close(logits, teacher(images))
    torch.testing.assert_close(loss, image_prior(teacher.adapted(images)))


def test_a_teacher_with_attention_is_held_to_its_patches_without_the_class_token() -> None:
    torch.manual_seed(0)
    teacher = classifier(timm.create_model("test_vit", num_classes=CLASSES))
    found = find_feature_map(teacher, (160, 160))
    assert found is not None
    teacher.feature_path, teacher.layouts = found.path, {found.path: found.layout}
    images, outputs = torch.rand(2, 3, 160, 160, requires_grad=True), []
    measure = measuring(teacher, choose_statistics(teacher, None, (160, 160)))
    for block in teacher.network.blocks:
        block.attn.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    logits, loss = measure(images)
    assert outputs == [], "the teacher itself is not run"
    torch.testing.assert_close(logits, teacher(images))
    entropies = torch.stack([similarity_entropy(output[:, 1:]) for output in outputs])
    expected = 0.05 * total_variation(teacher.adapted(images)) - entropies.mean()
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, images)[0].any()
    torch.testing.assert_close(measure(images)[1], loss)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("batch_norm", r"^synthesize\.statistics is batch_norm, but no BatchNorm .* runs in the teacher net"),
        ("patch_similarity", r"^synthesize\.statistics is patch_similarity, but no self-attention runs"),
    ],
)
def test_what_the_teacher_does_not_have_is_refused_by_name(wanted: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        choose_statistics(classifier(lenet_5(CLASSES)), wanted, (32, 32))
    assert "\n" not in str(raised.value)
