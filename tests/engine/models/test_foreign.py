"""Networks as other people write them: they run as they are, or one line says what to change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from engine.config.synthesize import SynthesizeConfig
from engine.errors import UserError
from engine.models import inverting
from engine.models.classifier import Classifier
from engine.models.features import forward_with_features
from engine.models.inverting import require_invertible
from engine.models.loading import ClassifierConfig, build_classifier, load_classifier
from engine.runtime.torch import FusedClassifier
from tests.classifiers import classifier_config
from tests.log_lines import log_lines

SIZE, CLASSES = 12, 3
MADE: dict[str, Callable[[int, int], nn.Module]] = {}
"""What `factory` makes, by test."""


def factory(num_classes: int, in_channels: int) -> nn.Module:
    return MADE["now"](num_classes, in_channels)


def config(make: Callable[[int, int], nn.Module], **changes: Any) -> ClassifierConfig:
    MADE["now"] = make
    settings = {"name": f"{__name__}:factory", "num_classes": CLASSES, "image_size": SIZE, **changes}
    return classifier_config(**settings)


def body(in_channels: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    layers = nn.Conv2d(in_channels, 8, 3, 2, 1), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), norm(8)
    return nn.Sequential(*layers, nn.ReLU())


class Net(nn.Module):
    """A body, pooling and a linear layer."""

    def __init__(self, num_classes: int, in_channels: int, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.body, self.fc = wrap(body(in_channels)), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


class Viewed(Net):
    """Flattens with view, which strides of channels_last do not allow."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels, nn.Identity)
        self.body, self.fc = body(in_channels), nn.Linear(8 * 9, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.fc(x.view(x.size(0), -1))


class ViewedInTraining(Net):
    """As Viewed, in train mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.fc(x.view(x.size(0), 8, -1).mean(2) if self.training else x.mean((2, 3)))


class Auxiliary(Net):
    """Gives more than its logits in train mode, the auxiliary ones first."""

    def __init__(self, num_classes: int, in_channels: int, *, as_dict: bool) -> None:
        super().__init__(num_classes, in_channels, nn.Identity)
        self.body, self.aux, self.as_dict = body(in_channels), nn.Linear(8, num_classes), as_dict

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).mean((2, 3))
        if not self.training:
            return self.fc(x)
        return {"aux": self.aux(x), "logits": self.fc(x)} if self.as_dict else (self.aux(x), self.fc(x), x)


class NoGradient(Net):
    """A frozen body, in a forward that cannot be traced."""

    def __init__(self, num_classes: int, in_channels: int, part: str) -> None:
        super().__init__(num_classes, in_channels, lambda module: module)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.part == "head" and torch.is_grad_enabled()):
            h = self.body(x)
        if h.isnan().any():
            raise ValueError("nan")
        h = h.mean((2, 3))
        return self.fc(h.detach() if self.part == "head" else h + x.mean((1, 2, 3))[:, None])


def invertible(teacher: Classifier, w_bn: float = 1.0) -> list[str]:
    with log_lines(inverting.logger.name) as lines:
        require_invertible(teacher, (SIZE, SIZE), SynthesizeConfig(w_bn=w_bn))
    return lines


@pytest.mark.parametrize("in_channels", [1, 3])
def test_a_view_behind_a_convolution_runs_everywhere(in_channels: int) -> None:
    classifier = build_classifier(config(Viewed, in_channels=in_channels)).place(torch.device("cpu"))
    assert classifier.memory_format == torch.contiguous_format
    classifier.eval().requires_grad_(False)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    images = torch.rand(2, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    forward = FusedClassifier(classifier, [], accelerator)
    torch.testing.assert_close(forward(images=images)["logits"], classifier(images))
    assert invertible(classifier) == []
    assert classifier.train()(images).shape == (2, CLASSES)


def test_other_networks_are_channels_last() -> None:
    classifier = build_classifier(config(lambda k, c: Net(k, c, lambda module: module)))
    assert classifier.memory_format == torch.channels_last
    assert (
        classifier.place(torch.device("cpu"))
        .network.body[0]
        .weight.is_contiguous(memory_format=torch.channels_last)
    )


def test_a_view_in_train_mode_alone_counts() -> None:
    make = config(lambda k, c: ViewedInTraining(k, c, lambda module: module))
    classifier = build_classifier(make, "student").place(torch.device("cpu"))
    images = torch.rand(2, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    assert classifier.train()(images).shape == (2, CLASSES)


@pytest.mark.parametrize("as_dict", [False, True])
def test_the_logits_of_train_mode_are_those_of_eval_mode(as_dict: bool) -> None:
    torch.manual_seed(0)
    classifier = build_classifier(config(lambda k, c: Auxiliary(k, c, as_dict=as_dict)), "student")
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    network, images = classifier.network, torch.rand(4, 3, SIZE, SIZE)
    logits = classifier.train()(images)
    torch.testing.assert_close(logits, network.fc(network.body(classifier.adapted(images)).mean((2, 3))))
    fresh = build_classifier(config(lambda k, c: Auxiliary(k, c, as_dict=as_dict)), "student").state_dict()
    assert all(torch.equal(fresh[name], before[name]) for name in before if "running" in name)


@pytest.mark.parametrize("wrapper", ["inner", "outer", "none"])
@pytest.mark.parametrize("kind", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrappers_are_taken_off_and_files_fit_with_and_without(
    kind: Callable[[nn.Module], nn.Module], wrapper: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    plain = Net(CLASSES, 3, lambda module: module)
    images = torch.rand(2, 3, SIZE, SIZE)
    made = {
        "inner": lambda k, c: Net(k, c, kind),
        "outer": lambda k, c: kind(Net(k, c, lambda module: module)),
        "none": lambda k, c: Net(k, c, lambda module: module),
    }
    inner = {name.replace("body.", "body.module."): value for name, value in plain.state_dict().items()}
    for content in (plain.state_dict(), inner):
        torch.save(content, tmp_path / "weights.pth")
        weights = str(tmp_path / "weights.pth")
        teacher = load_classifier(config(made[wrapper], weights=weights, feature="body"))
        torch.testing.assert_close(teacher.network(images), plain.eval()(images))
        assert type(teacher.network) is Net
        assert type(teacher.network.body) is nn.Sequential
        assert invertible(teacher) == []


def test_synced_batch_norm_becomes_that_of_one_process() -> None:
    class Flat(Net):
        def __init__(self, num_classes: int, in_channels: int) -> None:
            super().__init__(num_classes, in_channels, nn.SyncBatchNorm.convert_sync_batchnorm)
            self.fc = nn.Sequential(nn.SyncBatchNorm(8), nn.Linear(8, num_classes))

    network = build_classifier(config(Flat), "student").network
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in network.modules())
    assert "body.1.running_mean" in network.state_dict()


@pytest.mark.parametrize(
    ("part", "w_bn", "message"),
    [
        (
            "body",
            1.0,
            r"^teacher\.name: 2 of the 2 BatchNorms of .* no gradient to the image \(`network\.body\.1`\)",
        ),
        ("head", 1.0, r"^teacher\.name: .* passes no gradient to its image"),
        ("head", 0.0, r"^teacher\.name: .* passes no gradient to its image"),
    ],
)
def test_a_teacher_without_gradient_is_refused_in_one_line(part: str, w_bn: float, message: str) -> None:
    classifier = build_classifier(config(lambda k, c: NoGradient(k, c, part))).eval().requires_grad_(False)
    with pytest.raises(UserError, match=message) as raised:
        invertible(classifier, w_bn)
    assert "\n" not in str(raised.value)


def test_a_no_grad_that_a_graph_leaves_out_is_no_obstacle() -> None:
    class Traceable(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.body(x)
            return self.fc(h.mean((2, 3)))

    teacher = build_classifier(config(lambda k, c: Traceable(k, c, lambda module: module)))
    assert invertible(teacher.eval().requires_grad_(False)) == []


class OwnNorm(nn.Module):
    """A layer of somebody's own that keeps running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.running_mean.view(1, -1, 1, 1)


def test_layers_that_are_not_measured_are_named() -> None:
    def make(num_classes: int, in_channels: int) -> nn.Module:
        net = Net(num_classes, in_channels, lambda module: module)
        net.body[1] = OwnNorm(8)
        return net

    teacher = build_classifier(config(make)).eval().requires_grad_(False)
    assert invertible(teacher) == [
        "teacher: synthesize.w_bn measures 1 of 2 layers with running statistics, "
        "not `network.body.1` (OwnNorm)"
    ]


class Unlearning(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class OneImage(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)).reshape(1, 8))


class Flattened(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(0, keepdim=True)


class PartlyFrozen(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).detach().mean((2, 3)))


class Moving(Net):
    """Its forward puts another tensor in the place of a buffer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + x.detach().mean()
        return super().forward(x)


class AmongOthers(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits - logits.mean(0)


class OneValue(Net):
    """InstanceNorm of a single value, which fails in train mode alone."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.norm = nn.InstanceNorm2d(8, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.body(x).mean((2, 3), keepdim=True)).flatten(1))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Unlearning, "cannot be trained: no parameter gets a gradient from its logits; remove torch.no_grad"),
        (OneImage, "runs on one image but not on four .*; its forward must accept any batch size"),
        (
            Flattened,
            r"returns \[1, 3\] for four images, not \[4, 3\]; its forward must accept any batch size",
        ),
        (PartlyFrozen, r"4 layers of .* run but get no gradient \(`body"),
        (AmongOthers, "depend on the other images in the batch, or on chance"),
        (OneValue, "runs on 12x12 images but cannot be trained on them"),
    ],
)
def test_a_student_that_cannot_be_trained_is_refused_in_one_line(kind: type[Net], message: str) -> None:
    with pytest.raises(UserError, match=rf"^student\.name: .*{message}") as raised:
        build_classifier(config(lambda k, c: kind(k, c, lambda module: module)), "student")
    assert "\n" not in str(raised.value)


def test_the_probe_leaves_buffers_as_they_were() -> None:
    built = build_classifier(config(lambda k, c: Moving(k, c, lambda module: module)), "student")
    assert built.network.seen.tolist() == [0.0]


class InPlace(nn.Module):
    """A feature that the next operation overwrites; `branching`: no graph can be had."""

    def __init__(self, *, branching: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, CLASSES)
        self.branching = branching

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.conv(x))
        if self.branching and h.sum() > 1e30:
            h = 2 * h
        h += 1
        return self.fc(h.relu_().mean((2, 3)))


@pytest.mark.parametrize("branching", [False, True])
def test_a_feature_is_what_its_module_returned(branching: bool) -> None:
    torch.manual_seed(0)
    network, images = InPlace(branching=branching).eval(), torch.rand(2, 3, SIZE, SIZE)
    classifier = Classifier(
        network, num_classes=CLASSES, in_channels=3, mean=(0.0,), std=(1.0,), feature_path="bn"
    )
    classifier.eval()
    wanted = network.bn(network.conv(images))
    AcceleratorState._reset_state(reset_partial_state=True)
    asked = FusedClassifier(classifier, ["network.bn"], Accelerator(cpu=True))(images=images)["network.bn"]
    _, (tapped,) = forward_with_features(classifier, images, ["network.bn"])
    torch.testing.assert_close(asked, wanted)
    torch.testing.assert_close(tapped, wanted)
    (gradient,) = torch.autograd.grad(tapped.sum(), network.conv.weight)
    assert gradient.any()


def test_a_feature_that_is_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Paired(Net):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.pair(x)[0])

    with pytest.raises(
        UserError, match=r"^student\.feature: submodule 'network\.pair' .* returns a tuple, not a"
    ):
        build_classifier(config(lambda k, c: Paired(k, c, nn.Sequential), feature="pair"), "student")
