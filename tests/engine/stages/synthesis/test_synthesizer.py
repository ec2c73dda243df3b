"""The synthesizer: the images it keeps, its random draws, its starts, and that it inverts the teacher."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from engine.errors import NonFiniteError, UserError
from engine.models.classifier import Classifier
from engine.models.networks import wrn_16_1
from engine.stages.synthesis.synthesizer import SynthesizeConfig, Synthesizer

TINY = SynthesizeConfig(method="dda-paper", batch_size=12, steps=3, latent_dim=16, adversary="none")


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    torch.manual_seed(0)
    network = wrn_16_1(3, 1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn_like(module.bias)
    network.fc.weight.data *= 20
    classifier = Classifier(
        network, num_classes=3, in_channels=1, mean=[0.2], std=[0.3], feature_path="relu", name="tiny"
    )
    return classifier.eval().requires_grad_(False)


def synthesizer(teacher: Classifier, config: SynthesizeConfig = TINY, seed: int = 0) -> Synthesizer:
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    return Synthesizer(teacher, config, image_size=(16, 16), seed=seed, accelerator=accelerator)


def test_a_batch_has_the_fields_of_sources(teacher: Classifier) -> None:
    batch = synthesizer(teacher).batch(2, key_stride=5, adversary=None)
    assert batch.images.shape == (12, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.keys.tolist() == list(range(2 * 12 * 5, 3 * 12 * 5, 5))
    assert batch.parents.tolist() == [-1] * 12
    assert batch.labels.bincount().tolist() == [4, 4, 4]
    grey = batch.images[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(batch.images, grey), "a grey teacher gets grey images"


def test_same_seed_same_bytes_another_seed_other_bytes(teacher: Classifier) -> None:
    once = synthesizer(teacher).batch(0, key_stride=1, adversary=None)
    again = synthesizer(teacher).batch(0, key_stride=1, adversary=None)
    other = synthesizer(teacher, seed=1).batch(0, key_stride=1, adversary=None)
    assert torch.equal(once.images, again.images)
    assert not torch.equal(once.images, other.images)


def test_reinit_makes_a_batch_independent_of_those_before(teacher: Classifier) -> None:
    alone = synthesizer(teacher).batch(1, key_stride=1, adversary=None)
    after = synthesizer(teacher)
    after.batch(0, key_stride=1, adversary=None)
    assert torch.equal(alone.images, after.batch(1, key_stride=1, adversary=None).images)


@pytest.mark.parametrize("start", ["reuse", "renew", "meta", "fomaml"])
def test_carried_starts_depend_on_the_batches_before(teacher: Classifier, start: str) -> None:
    config = replace(TINY, start=start)
    alone = synthesizer(teacher, config).batch(1, key_stride=1, adversary=None)
    after = synthesizer(teacher, config)
    after.batch(0, key_stride=1, adversary=None)
    assert not torch.equal(alone.images, after.batch(1, key_stride=1, adversary=None).images)


def test_meta_start_lies_between_the_old_start_and_the_batch_end(teacher: Classifier) -> None:
    def weights(start: str, **options: float) -> Tensor:
        ours = synthesizer(teacher, replace(TINY, start=start, **options))
        ours.batch(0, key_stride=1, adversary=None)
        return ours.network.entrance.weight.detach().clone()

    begin = synthesizer(teacher).network.entrance.weight.detach()
    end = weights("reuse")
    torch.testing.assert_close(weights("meta", meta_rate=0.25), torch.lerp(begin, end, 0.25))


def test_warm_up_runs_once(teacher: Classifier) -> None:
    steps: list[int] = []
    ours = synthesizer(teacher, replace(TINY, start="reuse", warmup_steps=4))
    ours.batch(0, key_stride=1, adversary=None, on_step=steps.append)
    ours.batch(1, key_stride=1, adversary=None, on_step=steps.append)
    assert sum(steps) == 4 + 3 + 3


def test_reinit_has_no_warm_up(teacher: Classifier) -> None:
    steps: list[int] = []
    ours = synthesizer(teacher, replace(TINY, start="reinit", warmup_steps=4))
    ours.batch(0, key_stride=1, adversary=None, on_step=steps.append)
    assert sum(steps) == 3


def test_state_continues_bit_for_bit(teacher: Classifier) -> None:
    config = replace(TINY, start="meta", warmup_steps=2)
    whole = synthesizer(teacher, config)
    whole.batch(0, key_stride=1, adversary=None)
    resumed = synthesizer(teacher, config)
    resumed.load_state_dict(whole.state_dict())
    ours = resumed.batch(1, key_stride=1, adversary=None)
    assert torch.equal(ours.images, whole.batch(1, key_stride=1, adversary=None).images)


def test_agreement_is_measured_on_the_last_views(teacher: Classifier) -> None:
    seen = list[float]()

    def adversary(images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        seen.append((teacher(images).argmax(1) == labels).float().mean().item())
        return logits.sum() * 0

    ours = synthesizer(teacher, replace(TINY, w_adv=1.0))
    ours.batch(0, key_stride=1, adversary=adversary)
    assert 0 < seen[-1] < 1, "else any constant would do"
    assert ours.agreement == pytest.approx(seen[-1])
    assert synthesizer(teacher, replace(TINY, labels="teacher")).agreement is None


def test_adversary_sees_augmented_images_labels_and_logits(teacher: Classifier) -> None:
    seen = []

    def adversary(images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        seen.append((images.shape, labels.shape, logits.shape))
        return images.mean()

    synthesizer(teacher).batch(0, key_stride=1, adversary=adversary)
    assert seen == [((12, 3, 16, 16), (12,), (12, 3))] * 3


def test_inversion_makes_the_teacher_see_the_labels(teacher: Classifier) -> None:
    def loss_after(steps: int) -> float:
        config = replace(TINY, steps=steps, w_bn=0.0, lr=0.01, batch_size=24)
        batch = synthesizer(teacher, config).batch(0, key_stride=1, adversary=None)
        logits = teacher(batch.images.float() / 255)
        return torch.nn.functional.cross_entropy(logits, batch.labels).item()

    assert loss_after(40) < loss_after(1) - 0.2


def test_no_finite_loss_is_an_error_that_names_the_batch(teacher: Classifier) -> None:
    with pytest.raises(
        NonFiniteError, match="synthesize: no finite loss in the 3 steps of batch 7; lower synthesize.lr"
    ):
        synthesizer(teacher).batch(7, key_stride=1, adversary=lambda images, *_: images.mean() * torch.nan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "synthesize.steps must be at least 1, got 0"),
        ({"w_bn": -1.0}, "synthesize.w_bn must be 0 or above, got -1.0"),
        ({"lr": 0.0}, "synthesize.lr must be above 0"),
        ({"meta_rate": 1.5}, "synthesize.meta_rate must lie in"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_out_of_range_name_their_field(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SynthesizeConfig(**options)
