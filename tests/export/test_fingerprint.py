import copy
import functools
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export import fingerprint
from export.fingerprint import onnx_parts
from export.spec import Axis, Input, NetworkSpec
from tests.tiny_priors import write_clip, write_prior

SPAWN = multiprocessing.get_context("spawn")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4, eps=1e-5)
        self.register_buffer("shift", torch.arange(4.0))
        self.scales: Any = (1.0, 2.0)
        self.names = {"first", "second", "third"}
        self.settings = {"gain": 0.5}
        self.constant = torch.ones(4)
        self.activation: Callable[[Tensor], Tensor] = F.silu
        self.dtype = torch.float32

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.activation(self.norm(self.linear(x) + self.shift)) * self.scales[0] * self.constant,)


class Other(Block):
    """Computes something else from the same weights."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (-super().forward(x)[0],)


def block(kind: type[Block] = Block) -> Block:
    torch.manual_seed(0)
    return kind().eval()


def spec(module: nn.Module, **changed: Any) -> NetworkSpec:
    batch = Axis(name="batch", min=1, opt=2, max=4)
    fields: dict[str, Any] = {"inputs": (Input(name="x", shape=(batch, 4)),), "outputs": ("y",)}
    return NetworkSpec(name="block", module=module, **(fields | changed))


def parts(module: nn.Module, **changed: Any) -> dict[str, str]:
    return onnx_parts(spec(module, **changed))


def changed_parts(one: dict[str, str], other: dict[str, str]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


@pytest.fixture(autouse=True)
def _same_draws() -> Any:
    with torch.random.fork_rng():
        yield


def test_a_copy_has_equal_parts() -> None:
    module = block()
    assert parts(module) == parts(module) == parts(copy.deepcopy(module)) == parts(block())


def block_parts() -> dict[str, str]:
    return parts(block())


def test_another_process_finds_equal_parts() -> None:
    with SPAWN.Pool(1) as pool:
        assert pool.apply(block_parts) == block_parts()


def one_ulp(module: Block) -> None:
    weight = module.linear.weight.data
    weight[3, 3] = torch.nextafter(weight[3, 3], torch.tensor(torch.inf))


def minus_zero(module: Block) -> None:
    module.shift[0] = -0.0


def statistic(module: Block) -> None:
    assert module.norm.running_var is not None
    module.norm.running_var[0] = 2


def dtype(module: Block) -> None:
    module.linear.bias.data = module.linear.bias.data.double()


def turned(module: Block) -> None:
    module.linear.weight.data = module.linear.weight.data.T


@pytest.mark.parametrize("change", [one_ulp, minus_zero, statistic, dtype, turned], ids=lambda c: c.__name__)
def test_weights_and_buffers_change_only_the_weights(change: Callable[[Block], None]) -> None:
    module = block()
    change(module)
    assert changed_parts(parts(block()), parts(module)) == {"weights"}


def test_weights_of_another_layout_in_memory_are_equal() -> None:
    module = block()
    module.linear.weight.data = module.linear.weight.data.T.contiguous().T
    assert not module.linear.weight.is_contiguous()
    assert parts(module) == parts(block())


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_are_hashed(precision: torch.dtype) -> None:
    module, other = block().to(precision), block().to(precision)
    other.linear.bias.data[0] += 1
    assert changed_parts(parts(module), parts(other)) == {"weights"}


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: F.silu(x) * factor


ATTRIBUTES: dict[str, tuple[str, object]] = {
    "float": ("norm.eps", 1e-6),
    "tuple": ("scales", (1.0, 3.0)),
    "longer tuple": ("scales", (1.0, 2.0, 3.0)),
    "set": ("names", {"first", "second", "fourth"}),
    "dict": ("settings", {"gain": 0.25}),
    "tensor": ("constant", torch.ones(4) * 2),
    "dtype": ("dtype", torch.float16),
    "function of torch": ("activation", F.relu),
    "built-in function": ("activation", torch.tanh),
    "function": ("activation", scaled),
    "closure": ("activation", scaled(2.0)),
    "closure over another value": ("activation", scaled(3.0)),
    "partial": ("activation", functools.partial(F.leaky_relu, negative_slope=0.1)),
    "partial of another value": ("activation", functools.partial(F.leaky_relu, negative_slope=0.2)),
    "module of another kind": ("activation", nn.SiLU()),
    "number of another type": ("scales", (1, 2.0)),
    "new attribute": ("scale", 1.0),
}


def with_attribute(name: str) -> Block:
    module = block()
    path, value = ATTRIBUTES[name]
    owner, _, attribute = path.rpartition(".")
    setattr(module.get_submodule(owner), attribute, value)
    return module


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_changes_the_network(name: str) -> None:
    changed = changed_parts(parts(block()), parts(with_attribute(name)))
    assert "network" in changed
    assert changed <= {"network", "code"}, "a module of another kind brings its own code"


def test_attributes_are_distinguished() -> None:
    assert len({parts(with_attribute(name))["network"] for name in ATTRIBUTES}) == len(ATTRIBUTES)


def test_the_mode_does_not_matter() -> None:
    assert parts(block().train()) == parts(block())


def test_another_class_with_equal_weights_is_another_network() -> None:
    assert changed_parts(parts(block()), parts(block(Other))) == {"network"}


def test_a_layer_used_twice_counts_in_both_places() -> None:
    layer = nn.Linear(4, 4)
    once, twice = nn.Sequential(layer, nn.ReLU()), nn.Sequential(layer, nn.ReLU(), layer)
    assert {"network", "weights"} <= changed_parts(parts(once), parts(twice))
    relu = nn.ReLU()
    once, twice = nn.Sequential(relu, nn.Sigmoid()), nn.Sequential(relu, nn.Sigmoid(), relu)
    assert changed_parts(parts(once), parts(twice)) == {"network"}


def test_the_order_of_layers_is_a_part_of_the_network() -> None:
    one, other = nn.Sequential(nn.ReLU(), nn.Sigmoid()), nn.Sequential(nn.Sigmoid(), nn.ReLU())
    assert changed_parts(parts(one), parts(other)) == {"network"}


def axis(name: str = "batch", least: int = 1, tuned: int = 2, most: int = 4) -> Axis:
    return Axis(name=name, min=least, opt=tuned, max=most)


INPUTS: dict[str, tuple[Input, ...]] = {
    "another name": (Input(name="z", shape=(axis(), 4)),),
    "another fixed size": (Input(name="x", shape=(axis(), 5)),),
    "an axis more": (Input(name="x", shape=(axis(), axis("width"))),),
    "an axis of another name": (Input(name="x", shape=(axis("rows"), 4)),),
    "a fixed axis": (Input(name="x", shape=(axis(least=2, most=2), 4)),),
    "another order": (Input(name="x", shape=(4, axis())),),
    "an input more": (Input(name="x", shape=(axis(), 4)), Input(name="z", shape=(axis(), 4))),
}


@pytest.mark.parametrize("name", INPUTS)
def test_names_and_fixed_sizes_change_only_the_inputs(name: str) -> None:
    assert changed_parts(parts(block()), parts(block(), inputs=INPUTS[name])) == {"inputs"}


def test_inputs_are_distinguished() -> None:
    assert len({parts(block(), inputs=inputs)["inputs"] for inputs in INPUTS.values()}) == len(INPUTS)


def test_outputs_change_only_the_outputs() -> None:
    for outputs in (("z",), ("y", "z")):
        assert changed_parts(parts(block()), parts(block(), outputs=outputs)) == {"outputs"}


@pytest.mark.parametrize(
    "other",
    [axis(least=2), axis(tuned=3), axis(most=64), Axis(name="batch", min=2, opt=4, max=8, multiple=2)],
    ids=["min", "opt", "max", "multiple"],
)
def test_the_limits_of_an_axis_do_not_matter(other: Axis) -> None:
    assert parts(block(), inputs=(Input(name="x", shape=(other, 4)),)) == parts(block())


def test_the_distribution_of_examples_does_not_matter() -> None:
    (door,) = spec(block()).inputs
    assert parts(block(), inputs=(replace(door, values="uniform"),)) == parts(block())


@pytest.mark.parametrize("package", fingerprint.EXPORTERS)
def test_another_version_of_the_exporter_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    before, version = parts(block()), fingerprint.metadata.version
    monkeypatch.setattr(
        fingerprint.metadata, "version", lambda name: "0.0" if name == package else version(name)
    )
    assert changed_parts(before, parts(block())) == {"exporter"}


def test_another_version_of_the_networks_library_changes_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def network() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model("test_vit", num_classes=3).eval()

    before = parts(network())
    monkeypatch.setattr(timm, "__version__", "0.0")
    assert changed_parts(before, parts(network())) == {"code"}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prior(tmp_path_factory.mktemp("prior") / "here")


@pytest.fixture(scope="module")
def moved(prior: Path) -> Path:
    import shutil

    return Path(shutil.copytree(prior, prior.parent / "moved"))


def unet(folder: Path) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder / "unet")


def vae(folder: Path) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder / "vae")


def image_encoder(folder: Path) -> nn.Module:
    from transformers import CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")


@pytest.mark.parametrize("load", [unet, vae, image_encoder], ids=lambda load: load.__name__)
def test_the_folder_of_a_prior_does_not_matter(
    prior: Path, moved: Path, load: Callable[[Path], nn.Module]
) -> None:
    assert parts(load(prior)) == parts(load(moved))


def test_the_folder_of_an_open_clip_model_does_not_matter(tmp_path: Path) -> None:
    import open_clip

    here, there = write_clip(tmp_path / "here"), write_clip(tmp_path / "there")
    one, other = (open_clip.create_model(f"local-dir:{folder}").visual for folder in (here, there))
    assert parts(one) == parts(other)


def test_a_setting_of_diffusers_changes_the_network(prior: Path) -> None:
    network = unet(prior)
    before = parts(network)
    network.register_to_config(center_input_sample=True)
    assert changed_parts(before, parts(network)) == {"network"}


def test_a_setting_of_transformers_changes_the_network(prior: Path) -> None:
    network: Any = image_encoder(prior)
    before = parts(network)
    network.config.hidden_act = "relu"
    assert changed_parts(before, parts(network)) == {"network"}
