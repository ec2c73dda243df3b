"""The optimization of one batch: eager everywhere, and recorded as a CUDA graph on a GPU."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from engine.compute import ComputeConfig, open_accelerator
from engine.models.classifier import Classifier
from engine.models.generator import Generator
from engine.models.networks import wrn_16_1
from engine.stages.inversion import EAGER_STEPS, Inversion
from engine.stages.rotation import RotationAdversary
from engine.stages.synthesize import Synthesizer
from engine.stages.synthesize_config import SynthesizeConfig
from kernels.backend import set_backend

STEPS = EAGER_STEPS + 4


@pytest.fixture(autouse=True)
def _fused_kernels() -> Iterator[None]:
    yield
    set_backend(None)


def classifier() -> Classifier:
    torch.manual_seed(0)
    network = Classifier(
        wrn_16_1(4), num_classes=4, in_channels=3, mean=[0.5], std=[0.25], feature_path="relu"
    )
    return network.eval().requires_grad_(False)


def invert(accelerator: Accelerator, *, captured: bool) -> tuple[Tensor, list[float]]:
    """The best images and the best loss after each step, with BatchNorm statistics and rotation term."""
    device = accelerator.device
    config = SynthesizeConfig(batch_size=16, steps=STEPS, latent_dim=32)
    synthesizer = Synthesizer(
        classifier().to(device), config, image_size=16, seed=0, accelerator=accelerator, captured=captured
    )
    challenge = RotationAdversary(classifier().to(device), 16, 0, accelerator).challenger()
    z = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    labels, losses = (torch.arange(16) % 4).to(device), []
    with synthesizer.objective(labels, lambda images, labels, _: challenge(images, labels)) as objective:
        inversion = Inversion(
            synthesizer.generator,
            z,
            objective,
            lr=1e-3,
            draw=torch.Generator().manual_seed(2),
            accelerator=accelerator,
            captured=captured,
        )
        for _ in range(STEPS):
            inversion.step()
            losses.append(inversion.best_loss.item())
    assert (inversion.graph is not None) == (captured and device.type == "cuda")
    assert inversion.best_images is not None
    return inversion.best_images, losses


def test_the_loss_falls_and_the_best_images_are_kept() -> None:
    images, losses = invert(open_accelerator(ComputeConfig(device="cpu", precision="fp32")), captured=True)
    assert images.shape == (16, 3, 16, 16)
    assert losses[-1] < losses[0]
    assert losses == sorted(losses, reverse=True)


def test_the_best_images_are_those_of_the_lowest_loss() -> None:
    accelerator = open_accelerator(ComputeConfig(device="cpu", precision="fp32"))
    torch.manual_seed(0)
    generator, values = Generator(latent_dim=8, channels=1, size=8), iter([3.0, 1.0, 2.0])
    seen: list[Tensor] = []
    inversion = Inversion(
        generator,
        torch.randn(4, 8),
        lambda images: 0 * images.sum() + next(values),
        lr=0.1,
        draw=torch.Generator().manual_seed(0),
        accelerator=accelerator,
        captured=False,
    )
    for _ in range(3):
        state = {name: value.clone() for name, value in generator.state_dict().items()}
        seen.append(generator(inversion.z).detach().clone())
        generator.load_state_dict(state)
        inversion.step()
        with torch.no_grad():
            inversion.z.add_(1)
    assert inversion.best_loss == 1.0
    assert inversion.best_images is not None
    torch.testing.assert_close(inversion.best_images, seen[1])


def test_fused_kernels_and_plain_torch_take_the_same_steps() -> None:
    """Adam's first steps go by the sign of the gradient, so rounding grows; the first loss is held tight."""
    for precision, first, later in (("fp32", 1e-5, 2e-3), ("bf16", 5e-3, 2e-2)):
        ours, plain = (
            torch.tensor(invert(open_accelerator(compute), captured=False)[1])
            for compute in (
                ComputeConfig(device="cpu", precision=precision, kernels="fused"),
                ComputeConfig(device="cpu", precision=precision, kernels="torch"),
            )
        )
        torch.testing.assert_close(ours[0], plain[0], rtol=first, atol=0)
        torch.testing.assert_close(ours, plain, rtol=later, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_recorded_step_gives_the_eager_numbers(precision: str) -> None:
    accelerator = open_accelerator(ComputeConfig(device="cuda", precision=precision))
    (images, losses), (eager_images, eager_losses) = (invert(accelerator, captured=c) for c in (True, False))
    assert losses[-1] < losses[0]
    # capturable Adam computes its bias corrections on the device, in float32
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(eager_losses), rtol=1e-4, atol=1e-4)
    assert (images - eager_images).abs().mean() < 1e-2
