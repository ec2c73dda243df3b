"""The optimization of one batch: eager on every device, and captured as a CUDA graph on a GPU."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.config.synthesize import SynthesizeConfig
from engine.config.views import Views
from engine.distributed import open_accelerator
from engine.models.classifier import Classifier
from engine.models.generator import Generator
from engine.models.networks import wrn_16_1
from engine.stages.synthesis.adversary import RotationAdversary
from engine.stages.synthesis.inversion import EAGER_STEPS, Inversion
from engine.stages.synthesis.synthesizer import Synthesizer
from kernels.backend import set_backend

STEPS = EAGER_STEPS + 4


@pytest.fixture(autouse=True)
def _default_backend() -> Iterator[None]:
    yield
    set_backend(None)


def classifier() -> Classifier:
    torch.manual_seed(0)
    network = Classifier(
        wrn_16_1(4), num_classes=4, in_channels=3, mean=[0.5], std=[0.25], feature_path="relu"
    )
    return network.eval().requires_grad_(False)


def invert(accelerator: Accelerator, *, cuda_graph: bool) -> tuple[Tensor, list[float]]:
    """Return the best images, and the best loss after each step, with BatchNorm and rotation losses."""
    device = accelerator.device
    config = SynthesizeConfig(method="dda-paper", batch_size=16, steps=STEPS, latent_dim=32)
    synthesizer = Synthesizer(
        classifier().to(device),
        config,
        image_size=(16, 16),
        seed=0,
        accelerator=accelerator,
        cuda_graph=cuda_graph,
    )
    term = RotationAdversary(classifier().to(device), (16, 16), 0, accelerator).adversarial_term()
    z = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    labels, losses = torch.arange(16) % 4, []
    inversion = synthesizer.inversion(lambda images, labels, _: term(images, labels))
    inversion.begin(z, labels, torch.Generator().manual_seed(2))
    for _ in range(STEPS):
        inversion.step()
        losses.append(inversion.best_loss.item())
    assert (bool(inversion.graphs)) == (cuda_graph and device.type == "cuda")
    assert inversion.best_images is not None
    return inversion.best_images, losses


def test_the_loss_falls_and_the_best_images_are_kept() -> None:
    images, losses = invert(
        open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="fp32"))), cuda_graph=True
    )
    assert images.shape == (16, 3, 16, 16)
    assert losses[-1] < losses[0]
    assert losses == sorted(losses, reverse=True)


def test_the_best_images_have_the_lowest_loss() -> None:
    accelerator = open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="fp32")))
    torch.manual_seed(0)
    generator, values = Generator(latent_dim=8, channels=1, size=(8, 8)), iter([3.0, 1.0, 2.0])
    seen: list[Tensor] = []
    inversion = Inversion(
        generator,
        lambda images, _views, _labels: 0 * images.sum() + next(values),
        batch_size=4,
        latent_dim=8,
        lr=0.1,
        accelerator=accelerator,
        cuda_graph=False,
    )
    inversion.begin(torch.randn(4, 8), torch.zeros(4, dtype=torch.long), torch.Generator().manual_seed(0))
    for _ in range(3):
        state = {name: value.clone() for name, value in generator.state_dict().items()}
        seen.append(generator(inversion.z, inversion.labels).detach().clone())
        generator.load_state_dict(state)
        inversion.step()
        with torch.no_grad():
            inversion.z.add_(1)
    assert inversion.best_loss == 1.0
    assert inversion.best_images is not None
    torch.testing.assert_close(inversion.best_images, seen[1])


@pytest.mark.parametrize("views", [Views(), Views(flip=False), Views(flip=False, crop_padding=0)], ids=str)
def test_the_teacher_sees_the_views_asked_for(views: Views) -> None:
    """The images have a bright left edge, which a crop moves and only a flip brings to the right."""

    class LeftEdge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, z: Tensor, _labels: Tensor) -> Tensor:
            return self.scale * (torch.arange(8) < 2).float().expand(len(z), 1, 8, 8)

    seen: list[Tensor] = []

    def look(_images: Tensor, images: Tensor, _: Tensor) -> Tensor:
        seen.append(images.detach().clone())
        return images.mean()

    accelerator = open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="fp32")))
    inversion = Inversion(
        LeftEdge(),
        look,
        batch_size=64,
        latent_dim=8,
        lr=0.0,
        accelerator=accelerator,
        cuda_graph=False,
        views=views,
    )
    inversion.begin(torch.randn(64, 8), torch.zeros(64, dtype=torch.long), torch.Generator().manual_seed(0))
    inversion.step()
    columns = seen[0].amax((1, 2))  # [64, 8]
    assert bool((columns[:, 0] < columns[:, -1]).any()) == views.flip
    assert bool((columns != columns[0]).any()) == (views.crop_padding > 0)


def test_a_second_batch_is_what_it_would_be_alone() -> None:
    accelerator = open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="fp32")))
    config = SynthesizeConfig(method="dda-paper", batch_size=8, steps=4, latent_dim=32)
    both, alone = (
        Synthesizer(classifier(), config, image_size=(16, 16), seed=0, accelerator=accelerator)
        for _ in range(2)
    )
    both.batch(0, key_stride=1, adversary=None)
    images = [each.batch(1, key_stride=1, adversary=None).images for each in (both, alone)]
    assert torch.equal(*images)


def test_fused_kernels_and_plain_torch_take_the_same_steps() -> None:
    """Adam's first steps follow the gradient's sign, so rounding errors grow after the first loss."""
    for precision, first, later in (("fp32", 1e-5, 2e-3), ("bf16", 5e-3, 2e-2)):
        ours, plain = (
            torch.tensor(invert(open_accelerator(resolve_compute(compute)), cuda_graph=False)[1])
            for compute in (
                ComputeConfig(device="cpu", precision=precision, kernels="fused"),
                ComputeConfig(device="cpu", precision=precision, kernels="torch"),
            )
        )
        torch.testing.assert_close(ours[0], plain[0], rtol=first, atol=0)
        torch.testing.assert_close(ours, plain, rtol=later, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_captured_step_gives_the_eager_numbers(precision: str) -> None:
    accelerator = open_accelerator(resolve_compute(ComputeConfig(device="cuda", precision=precision)))
    images, losses = invert(accelerator, cuda_graph=True)
    eager_images, eager_losses = invert(accelerator, cuda_graph=False)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(losses, eager_losses)
    torch.testing.assert_close(images, eager_images)


class Ramp(nn.Module):
    """Images [B, 1, 8, 8] whose columns grow brighter from left to right."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, _labels: Tensor) -> Tensor:
        return self.scale * torch.arange(8.0).expand(len(z), 1, 8, 8) / 8


def seen_by_the_objective(shift: float, *, is_coarse: bool, steps: int) -> list[Tensor]:
    seen: list[Tensor] = []

    def look(_images: Tensor, views: Tensor, _: Tensor) -> Tensor:
        seen.append(views.detach().clone())
        return views.mean()

    inversion = Inversion(
        Ramp(),
        look,
        batch_size=4,
        latent_dim=2,
        lr=1e-9,
        accelerator=open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="fp32"))),
        cuda_graph=False,
        views=Views(flip=False, crop_padding=0),
        shift=shift,
    )
    labels = torch.zeros(4, dtype=torch.long)
    inversion.begin(torch.zeros(4, 2), labels, torch.Generator().manual_seed(0))
    inversion.set_coarse(is_coarse)
    for _ in range(steps):
        inversion.step()
    return seen


def test_a_batch_is_shifted_around_by_up_to_its_share() -> None:
    ramp = torch.arange(8.0) / 8
    offsets = set()
    for views in seen_by_the_objective(0.25, is_coarse=False, steps=40):
        assert torch.equal(views, views[:1].expand(4, -1, -1, -1)), "one shift for the batch"
        (offset,) = (k for k in range(-4, 4) if torch.allclose(views[0, 0, 0], ramp.roll(k), atol=1e-4))
        offsets.add(offset)
    assert offsets == {-2, -1, 0, 1, 2}


def test_coarse_steps_see_half_the_size() -> None:
    (views,) = seen_by_the_objective(0.0, is_coarse=True, steps=1)
    assert views.shape == (4, 1, 4, 4)
    torch.testing.assert_close(views[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]) / 8, atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_float", [True, False], ids=["float", "tensor"])
def test_the_learning_rate_follows_its_factor(*, is_float: bool) -> None:
    inversion = Inversion(
        Ramp(),
        lambda *images: images[0].mean(),
        batch_size=2,
        latent_dim=2,
        lr=0.1,
        accelerator=open_accelerator(resolve_compute(ComputeConfig(device="cpu", precision="fp32"))),
        cuda_graph=False,
    )
    if not is_float:
        inversion.optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    inversion.set_rate(0.5)
    assert float(inversion.optimizer.param_groups[0]["lr"]) == pytest.approx(0.05)
