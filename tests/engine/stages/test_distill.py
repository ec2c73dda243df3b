"""The distiller: a step against one written out, resuming, logging, and refusals."""

import copy
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from engine.errors import NonFiniteError, UserError
from engine.feed.feed import FeedBatch
from engine.models.classifier import Classifier
from engine.models.wide_resnet import WideResNet
from engine.seeding import generator
from engine.stages.distill import DistillConfig, Distiller
from kernels.backend import use_backend

SIZE, CLASSES = 8, 4
TAPS = {"stages.0": "stages.0", "stages.1": "stages.1"}


def accelerator(mixed_precision: str = "no") -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True, mixed_precision=mixed_precision)


def classifier(
    network: nn.Module,
    feature_path: str | None = "relu",
    num_classes: int = CLASSES,
    taps: Collection[str] = (),
) -> Classifier:
    return Classifier(
        network,
        num_classes=num_classes,
        in_channels=1,
        mean=(0.5,),
        std=(0.5,),
        feature_path=feature_path,
        taps=taps,
    )


def wide_resnet(widen: int, seed: int, taps: Collection[str] = ()) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return classifier(WideResNet(10, widen, CLASSES, in_channels=1), taps=taps)


def teacher(taps: Collection[str] = ()) -> Classifier:
    return wide_resnet(2, seed=1, taps=taps).eval().requires_grad_(False)


def distiller(total_steps: int = 6, precision: str = "no", **settings: Any) -> Distiller:
    config = DistillConfig(**{"batch_size": 8, "temperature": 4.0, **settings})
    student = wide_resnet(1, seed=2, taps=config.student_taps)
    return Distiller(
        teacher(config.teacher_taps),
        student,
        config,
        total_steps,
        3,
        accelerator(precision),
        image_size=(SIZE, SIZE),
    )


@pytest.fixture(scope="module")
def batches() -> list[FeedBatch]:
    """Batches for 40 steps; the teacher disagrees with a third of the labels."""
    draw = generator(0, "batches")
    batches = []
    for _ in range(40):
        images = torch.rand(8, 3, SIZE, SIZE, generator=draw).to(memory_format=torch.channels_last)
        labels = torch.randint(0, CLASSES, (8,), generator=draw)
        batches.append(FeedBatch(images, labels, torch.arange(8) % 3 > 0))
    return batches


def train(ours: Distiller, batches: list[FeedBatch], steps: int, **options: Any) -> None:
    """Take the next steps of a run whose step i trains on batches[i]."""
    ours.train(batches[ours.step : ours.step + steps], steps, **options)


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("nesterov", [False, True], ids=["plain", "nesterov"])
@pytest.mark.parametrize("ce_on_agreement", [True, False], ids=["ce_on_agreement", "ce_on_all"])
def test_one_step_is_the_written_out_sgd_step(
    ce_on_agreement: bool, nesterov: bool, batches: list[FeedBatch]
) -> None:
    """The expected step, in float64, is w - lr * (gradient + decay * w) of losses written out."""
    settings = {"w_kl": 0.7, "w_ce": 1.3, "w_feature": 5.0, "weight_decay": 0.01}
    ours = distiller(ce_on_agreement=ce_on_agreement, nesterov=nesterov, **settings)
    (head,) = ours.heads
    student, align = copy.deepcopy(ours.student).double().train(), copy.deepcopy(head).double()
    sample = batches[0]
    images = sample.images.double()

    def forward(model: Classifier) -> tuple[Tensor, Tensor]:
        network = model.network
        x = (images * model.luma).sum(1, keepdim=True) * 2 - 1
        feature = F.relu(network.bn(network.stages(network.conv1(x))))
        return network.fc(feature.mean((2, 3))), feature

    with torch.no_grad():
        teacher_logits, teacher_feature = forward(teacher().double())
    logits, feature = forward(student)
    log_t, log_s = (teacher_logits / 4).log_softmax(1), (logits / 4).log_softmax(1)
    kl = 16 * (log_t.exp() * (log_t - log_s)).sum() / 8
    rows = sample.agrees if ce_on_agreement else torch.ones(8, dtype=torch.bool)
    ce = -logits.log_softmax(1)[torch.arange(8), sample.labels][rows].sum() / rows.sum()
    mse = (align(feature, (2, 2)) - teacher_feature).square().mean()
    assert 0 < sample.agrees.sum() < 8
    (0.7 * kl + 1.3 * ce + 5 * mse).backward()

    logs: list[dict[str, float]] = []
    train(ours, batches, 1, on_log=lambda _, means: logs.append(means))
    assert logs[0]["kl"] == pytest.approx(kl.item(), rel=1e-5, abs=4e-6)
    assert logs[0]["ce"] == pytest.approx(ce.item(), rel=1e-5, abs=4e-6)
    assert logs[0]["feature"] == pytest.approx(mse.item(), rel=1e-5)
    assert logs[0]["label_agreement"] == pytest.approx(sample.agrees.float().mean().item())
    for before, after in ((student, ours.student), (align, head)):
        for old, new in zip(before.parameters(), after.parameters(), strict=True):
            expected = old - 0.1 * (1.9 if nesterov else 1) * (old.grad + 0.01 * old)
            torch.testing.assert_close(new.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"taps": TAPS}, {"w_feature": 0.0}], ids=["aligned", "taps", "logits-only"]
)
def test_resuming_from_a_file_ends_with_the_same_bits_as_never_stopping(
    settings: dict[str, Any], batches: list[FeedBatch], tmp_path: Path
) -> None:
    straight = distiller(**settings, warmup_steps=2)
    train(straight, batches, 6)

    first = distiller(**settings, warmup_steps=2)
    train(first, batches, 3)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    torch.rand(7)  # the global generator has another state when the run resumes
    second = distiller(**settings, warmup_steps=2)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.step == 3
    train(second, batches, 3)

    assert second.step == straight.step == 6
    assert same(weights(second.student), weights(straight.student))
    assert same(weights(second.heads), weights(straight.heads))
    assert not same(weights(first.student), weights(straight.student))


@pytest.mark.parametrize("w_feature", [30.0, 0.0], ids=["aligned", "logits-only"])
def test_a_state_of_an_earlier_version_is_read(w_feature: float, batches: list[FeedBatch]) -> None:
    first = distiller(w_feature=w_feature)
    train(first, batches, 3)
    state = first.state_dict()
    heads = state.pop("align")
    second = distiller(w_feature=w_feature)
    second.load_state_dict({**state, "align": heads[0] if heads else None})
    assert len(second.heads) == len(heads) == (w_feature > 0)
    assert same(weights(second.heads), weights(first.heads))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_student_learns_the_teacher(precision: str, batches: list[FeedBatch]) -> None:
    ours = distiller(total_steps=40, precision=precision, w_ce=0.0, w_feature=1.0)
    fixed, losses = weights(ours.teacher), []
    train(ours, batches, 40, on_log=lambda _, means: losses.append(means["loss"]), log_every=10)
    assert len(losses) == 4
    assert losses[-1] < 0.6 * losses[0]
    assert same(weights(ours.teacher), fixed)
    assert all(p.dtype == torch.float32 for p in ours.student.parameters())


def test_bf16_is_used_in_training_and_the_student_still_evaluates_in_float32(
    batches: list[FeedBatch],
) -> None:
    ours, dtypes = distiller(precision="bf16"), []
    ours.student.network.fc.register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    train(ours, batches, 1)
    ours.student(torch.zeros(1, 3, SIZE, SIZE))
    assert dtypes == [torch.bfloat16, torch.float32]


def test_without_a_feature_weight_there_is_no_head_and_no_path_is_needed(batches: list[FeedBatch]) -> None:
    student, blind = wide_resnet(1, seed=2), teacher()
    student.feature_path = blind.feature_path = None
    ours = Distiller(
        blind, student, DistillConfig(batch_size=8, w_feature=0), 2, 3, accelerator(), image_size=(SIZE, SIZE)
    )
    before, logs = weights(student), []
    train(ours, batches, 2, on_log=lambda _, means: logs.append(means))
    assert len(ours.heads) == 0
    assert logs[0]["feature"] == 0
    assert not same(weights(student), before)


@pytest.mark.parametrize("blind", ["teacher", "student"])
def test_a_missing_feature_path_names_its_field(blind: str) -> None:
    models = {"teacher": teacher(), "student": wide_resnet(1, seed=2)}
    models[blind].feature_path = None
    with pytest.raises(UserError, match=rf"{blind}\.feature"):
        Distiller(
            **models,
            config=DistillConfig(),
            total_steps=9,
            seed=0,
            accelerator=accelerator(),
            image_size=(SIZE, SIZE),
        )


def test_a_feature_that_is_no_map_names_its_field() -> None:
    flat = teacher()
    flat.feature_path = "network.fc"
    with pytest.raises(UserError, match=r"teacher\.feature 'network.fc' returns \[1, 4\]"):
        Distiller(flat, wide_resnet(1, 2), DistillConfig(), 9, 0, accelerator(), image_size=(SIZE, SIZE))


def test_a_student_with_other_classes_is_refused() -> None:
    student = classifier(WideResNet(10, 1, 7, in_channels=1), num_classes=7)
    with pytest.raises(UserError, match=r"student\.num_classes is 7, .* set it to 4"):
        Distiller(teacher(), student, DistillConfig(), 9, 0, accelerator(), image_size=(SIZE, SIZE))


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"distill\.warmup_steps is 6"):
        distiller(total_steps=6, warmup_steps=6)


def test_a_run_without_steps_leaves_the_student_as_it_was(batches: list[FeedBatch]) -> None:
    ours = distiller(total_steps=0)
    before = weights(ours.student)
    train(ours, batches, 0)
    assert same(weights(ours.student), before)


def test_building_and_training_leave_the_global_generator_alone(batches: list[FeedBatch]) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train(distiller(), batches, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_in_the_student_is_a_function_of_the_seed(batches: list[FeedBatch]) -> None:
    def trained(global_seed: int) -> list[Tensor]:
        ours = distiller(w_feature=0.0)
        ours.student.network.fc = nn.Sequential(nn.Dropout(0.5), ours.student.network.fc)
        torch.manual_seed(global_seed)
        train(ours, batches, 2)
        return weights(ours.student)

    assert same(trained(1), trained(2))


def test_align_head_is_a_function_of_the_seed() -> None:
    first = distiller()
    torch.rand(9)
    assert same(weights(first.heads), weights(distiller().heads))


def test_student_trains_in_train_mode_and_is_left_in_eval_mode(batches: list[FeedBatch]) -> None:
    ours, modes = distiller(), []
    ours.student.register_forward_pre_hook(lambda module, _: modes.append(module.network.bn.training))
    statistics = ours.student.network.bn.running_mean.clone()
    train(ours, batches, 1)
    assert modes == [True]
    assert not ours.teacher.training
    assert not ours.student.training
    assert not ours.heads.training
    assert not torch.equal(ours.student.network.bn.running_mean, statistics)


def test_a_student_that_was_loaded_frozen_is_trained(batches: list[FeedBatch]) -> None:
    student = wide_resnet(1, seed=2).requires_grad_(False)
    ours = Distiller(
        teacher(), student, DistillConfig(batch_size=8), 2, 0, accelerator(), image_size=(SIZE, SIZE)
    )
    before = student.network.conv1.weight.clone()
    train(ours, batches, 1)
    assert not torch.equal(student.network.conv1.weight, before)


def test_after_step_gets_the_batch_once_the_weights_have_moved(batches: list[FeedBatch]) -> None:
    ours, seen = distiller(), []
    before = ours.student.network.fc.weight.detach().clone()

    def after_step(images: Tensor, labels: Tensor) -> None:
        seen.append((images, labels))
        assert not torch.equal(ours.student.network.fc.weight, before)

    train(ours, batches, 2, after_step=after_step)
    assert len(seen) == 2
    for batch, (images, labels) in zip(batches, seen, strict=False):
        assert torch.equal(images, batch.images)
        assert torch.equal(labels, batch.labels)


def test_a_feed_that_ends_early_is_noticed(batches: list[FeedBatch]) -> None:
    with pytest.raises(ValueError, match="2 batches too few"):
        distiller().train(batches[:1], 3)


def test_logs_are_means_over_their_window_and_nothing_is_left_out(batches: list[FeedBatch]) -> None:
    def logged(log_every: int) -> list[tuple[int, dict[str, float]]]:
        logs: list[tuple[int, dict[str, float]]] = []
        ours = distiller(total_steps=5)
        train(ours, batches, 5, on_log=lambda step, means: logs.append((step, means)), log_every=log_every)
        return logs

    single, pairs = logged(1), logged(2)
    assert [step for step, _ in pairs] == [2, 4, 5]
    for name in ("loss", "kl", "ce", "feature", "label_agreement"):
        values = [means[name] for _, means in single]
        expected = [(values[0] + values[1]) / 2, (values[2] + values[3]) / 2, values[4]]
        assert [means[name] for _, means in pairs] == pytest.approx(expected, rel=1e-5)
    for _, means in single:
        assert means["loss"] == pytest.approx(means["kl"] + means["ce"] + 30 * means["feature"], rel=1e-5)
    assert pairs[-1][1]["lr"] == pytest.approx(0.1 * (1 + math.cos(math.pi * 4 / 5)) / 2)


@pytest.mark.parametrize("position", ["middle of the window", "last step of the call"])
def test_a_loss_that_is_not_finite_stops_at_the_next_log(position: str, batches: list[FeedBatch]) -> None:
    ours, logged = distiller(total_steps=10), []
    broken = 3 if position.startswith("middle") else 6

    def poison(_images: Tensor, _labels: Tensor) -> None:
        if ours.step == broken:
            ours.student.network.fc.bias.data[0] = float("nan")

    with pytest.raises(NonFiniteError, match=r"distill.* step (4|7); lower distill.lr$"):
        train(ours, batches, 7, after_step=poison, on_log=lambda step, _: logged.append(step), log_every=4)
    assert logged == ([] if broken == 3 else [4])


def test_steps_beyond_the_schedule_are_refused(batches: list[FeedBatch]) -> None:
    ours = distiller(total_steps=2)
    train(ours, batches, 2)
    with pytest.raises(ValueError, match="schedule"):
        train(ours, batches, 1)


@pytest.mark.parametrize(("name", "change"), [("total_steps", 1), ("seed", 1)])
def test_the_state_of_another_run_is_refused(name: str, change: int) -> None:
    state = distiller().state_dict()
    state[name] += change
    with pytest.raises(UserError, match=name):
        distiller().load_state_dict(state)


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-4), ("bf16", 2e-2)])
def test_fused_kernels_and_plain_torch_take_the_same_steps(
    batches: list[FeedBatch], precision: str, tolerance: float
) -> None:
    losses: list[list[float]] = []
    for backend in (None, "torch"):
        with use_backend(backend):
            ours = distiller(precision=precision, lr=0.01)
            seen: list[float] = []
            train(
                ours, batches, 6, on_log=lambda _, means, seen=seen: seen.append(means["loss"]), log_every=1
            )
        losses.append(seen)
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)


@pytest.mark.parametrize("setting", ["mixup", "cutmix", "warp"])
def test_new_views_are_a_function_of_seed_and_step(setting: str, batches: list[FeedBatch]) -> None:
    def trained(**options: Any) -> list[Tensor]:
        ours = distiller(w_ce=0.0, **options)
        train(ours, batches, 2)
        return weights(ours.student)

    assert same(trained(**{setting: 0.5}), trained(**{setting: 0.5}))
    assert not same(trained(**{setting: 0.5}), trained())
