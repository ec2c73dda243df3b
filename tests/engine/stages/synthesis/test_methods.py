"""Every method: it inverts the teacher, resumes exactly, and makes a batch from its number alone."""

from copy import deepcopy
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.config.methods import METHODS, Name
from engine.config.synthesize import SynthesizeConfig
from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.models.networks import wrn_16_1
from engine.stages.synthesis.adversary import kl_adversarial
from engine.stages.synthesis.synthesizer import Synthesizer

every_method = pytest.mark.parametrize("method", get_args(Name))


def classifier(seed: int) -> Classifier:
    torch.manual_seed(seed)
    network = wrn_16_1(3, 1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn_like(module.bias)
    network.fc.weight.data *= 20
    made = Classifier(
        network, num_classes=3, in_channels=1, mean=[0.2], std=[0.3], feature_path="relu", name="tiny"
    )
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    return classifier(0)


@pytest.fixture(scope="module")
def student() -> Classifier:
    return classifier(1)


def config(method: Name, **options: object) -> SynthesizeConfig:
    warmup = 2 if METHODS[method].warmup_steps else 0
    settings = SynthesizeConfig(method=method, batch_size=9, steps=3, warmup_steps=warmup, latent_dim=16)
    return replace(settings, **options)


def synthesizer(teacher: Classifier, config: SynthesizeConfig) -> Synthesizer:
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    return Synthesizer(teacher, config, image_size=(16, 16), seed=0, accelerator=accelerator)


@every_method
def test_a_run_continues_bit_for_bit(method: Name, teacher: Classifier, student: Classifier) -> None:
    def adversary(images: Tensor, _labels: Tensor, logits: Tensor) -> Tensor:
        return kl_adversarial(student(images), logits)

    whole = synthesizer(teacher, config(method))
    whole.batch(0, key_stride=1, adversary=None)
    state = deepcopy(whole.state_dict())
    resumed = synthesizer(teacher, config(method))
    resumed.load_state_dict(state)
    for index in (1, 2):
        ours = resumed.batch(index, key_stride=1, adversary=adversary)
        theirs = whole.batch(index, key_stride=1, adversary=adversary)
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


@every_method
def test_an_independent_batch_is_a_function_of_its_number(method: Name, teacher: Classifier) -> None:
    alone = synthesizer(teacher, config(method))
    after = synthesizer(teacher, config(method))
    after.batch(0, key_stride=1, adversary=None, independent=True)
    ours = alone.batch(1, key_stride=1, adversary=None, independent=True)
    theirs = after.batch(1, key_stride=1, adversary=None, independent=True)
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.w_cls and method.labels == "drawn"]
)
def test_inversion_makes_the_teacher_see_the_labels(method: Name, teacher: Classifier) -> None:
    def loss_after(steps: int) -> float:
        settings = config(method, steps=steps, batch_size=18, w_bn=0.0)
        batch = synthesizer(teacher, settings).batch(0, key_stride=1, adversary=None)
        logits = teacher(batch.images.float() / 255)
        return nn.functional.cross_entropy(logits, batch.labels).item()

    assert loss_after(40) < loss_after(1) - 0.1


def test_a_teacher_labels_what_it_sees(teacher: Classifier) -> None:
    batch = synthesizer(teacher, config("dafl")).batch(0, key_stride=1, adversary=None)
    assert torch.equal(batch.labels, teacher(batch.images.float() / 255).argmax(1))


def test_renew_draws_the_first_layer_again_and_keeps_the_others(teacher: Classifier) -> None:
    ours = synthesizer(teacher, config("dda", lr=1e-30))
    before = deepcopy(ours.network.state_dict())
    ours.batch(0, key_stride=1, adversary=None)
    after = ours.network.state_dict()
    changed = {name for name in before if before[name].is_floating_point() and "weight" in name}
    changed = {name for name in changed if not torch.allclose(before[name], after[name], atol=1e-6)}
    assert changed == {"entrance.weight"}


@pytest.mark.parametrize("method", ["dda", "cpnet", "deepinversion"])
def test_methods_run_in_bf16_on_rgb_images_that_are_not_square(method: Name) -> None:
    torch.manual_seed(0)
    rgb = Classifier(
        wrn_16_1(3), num_classes=3, in_channels=3, mean=[0.5] * 3, std=[0.3] * 3, feature_path="relu"
    )
    rgb.eval().requires_grad_(False)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    ours = Synthesizer(rgb, config(method), image_size=(16, 24), seed=0, accelerator=accelerator)
    images = ours.batch(0, key_stride=1, adversary=None).images
    assert images.shape == (9, 3, 16, 24)
    assert not torch.equal(images[:, 0], images[:, 1])


def test_a_noisy_layer_with_a_new_start_depends_on_nothing_before(teacher: Classifier) -> None:
    settings = config("nayer", start="reinit", warmup_steps=0)
    alone, after = synthesizer(teacher, settings), synthesizer(teacher, settings)
    after.batch(0, key_stride=1, adversary=None)
    ours, theirs = (each.batch(1, key_stride=1, adversary=None) for each in (alone, after))
    assert torch.equal(ours.images, theirs.images)


def test_a_block_inverse_needs_maps() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    blind = Classifier(network, num_classes=3, in_channels=1, mean=[0.2], std=[0.3], feature_path=None)
    with pytest.raises(UserError, match=r"synthesize\.source is block_inverse, but Sequential has no"):
        synthesizer(blind.eval(), config("cpnet", w_bn=0.0))


def test_coarse_steps_keep_their_share() -> None:
    settings = config("deepinversion", steps=200, coarse_steps=150)
    assert (settings.with_steps(10).steps, settings.with_steps(10).coarse_steps) == (10, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "deepinversion", "start": "meta"},
            r"synthesize\.start is meta, but pixels carry nothing",
        ),
        ({"steps": 5, "coarse_steps": 5}, r"synthesize\.coarse_steps is 5, which leaves none of the 5"),
        ({"method": "nayer", "batch_size": 1}, r"synthesize\.batch_size is 1, but noisy_layer"),
        ({"method": "dafl", "class_weights": {"a": 2.0}}, r"synthesize\.class_weights draws labels, but"),
        ({"shift": 0.7}, r"synthesize\.shift must lie in \[0, 0\.5\], got 0\.7"),
    ],
)
def test_settings_that_do_not_fit_together_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SynthesizeConfig(**options)
