"""Weights from files: every wrapper that is tolerated, and every file that is refused."""

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.models.loading import ClassifierConfig, load_classifier
from engine.models.networks import lenet_5_half, wrn_16_1

State = dict[str, Tensor]
LENET = ClassifierConfig(name="engine:lenet_5_half", in_channels=1)


def trained(num_classes: int = 10) -> State:
    return {key: torch.randn_like(value) for key, value in lenet_5_half(num_classes, 1).state_dict().items()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def load(path: Path, config: ClassifierConfig = LENET) -> Classifier:
    return load_classifier(replace(config, weights=str(path)))


def error_of(path: Path, config: ClassifierConfig = LENET) -> str:
    with pytest.raises(UserError) as raised:
        load(path, config)
    message = str(raised.value)
    assert message.startswith("teacher.weights: ")
    assert str(path) in message
    assert "\n" not in message
    return message


WRAPPERS: dict[str, Callable[[State], object]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "net": lambda s: {"net": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "module_prefix": lambda s: prefixed("module.", s),
    "compiled_prefix": lambda s: {"state_dict": prefixed("module._orig_mod.", s)},
    "classifier_prefix": lambda s: prefixed("network.", s),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_pth_round_trip(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    state = trained()
    torch.save(wrap(state), tmp_path / "w.pth")
    classifier = load(tmp_path / "w.pth")
    torch.testing.assert_close(dict(classifier.network.state_dict()), state, rtol=0, atol=0)
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize("prefix", ["", "module.", "network."], ids=["plain", "module", "network"])
def test_safetensors_round_trip(tmp_path: Path, prefix: str) -> None:
    state = trained()
    save_file(prefixed(prefix, state), tmp_path / "w.safetensors")
    torch.testing.assert_close(
        dict(load(tmp_path / "w.safetensors").network.state_dict()), state, rtol=0, atol=0
    )


def test_batch_norm_statistics_load_and_their_counters_may_be_absent(tmp_path: Path) -> None:
    network = wrn_16_1(10)
    network.train()(torch.rand(8, 3, 32, 32))
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    classifier = load(tmp_path / "w.pt", ClassifierConfig(name="engine:wrn_16_1"))
    assert network.bn.running_var.std() > 0
    torch.testing.assert_close(classifier.network.bn.running_var, network.bn.running_var)


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    save_file(trained(), tmp_path / "w.safetensors")
    before = torch.random.get_rng_state()
    load(tmp_path / "w.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_must_be_set() -> None:
    with pytest.raises(UserError, match=r"^student\.weights is not set"):
        load_classifier(LENET, "student")


def test_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("name", ["w.bin", "folder.pth"])
def test_not_a_weights_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir() if name.startswith("folder") else path.write_bytes(b"x")
    assert "is not a file with suffix .safetensors, .pth, .pt" in error_of(path)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda content: content[: len(content) // 2],
    "few_bytes": lambda content: content[:5],
    "empty": lambda _content: b"",
    "web_page": lambda _content: b"<html>404 not found</html>",
    "text": lambda _content: b"hello, no weights here",
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_file(tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(trained(), path)
    path.write_bytes(damage(path.read_bytes()))
    assert "is corrupt or truncated" in error_of(path)


class Harmful:
    """Creates the file `mark` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    "save", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))], ids=["torch", "pickle"]
)
def test_a_pickle_that_could_run_code_is_not_run(
    tmp_path: Path, save: Callable[[object, Path], None]
) -> None:
    save({"state_dict": Harmful(tmp_path / "mark")}, tmp_path / "w.pth")
    assert "could run code; convert its state dict to .safetensors" in error_of(tmp_path / "w.pth")
    assert not (tmp_path / "mark").exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(lenet_5_half(10, 1), tmp_path / "w.pth")
    assert "could run code" in error_of(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list, not a state dict"),
        (torch.zeros(2), "holds a Tensor, not a state dict"),
        ({}, "holds a dict, not a state dict"),
        ({"conv1.weight": torch.zeros(2), "epoch": 3}, "`epoch` is a int, not a tensor"),
        ({"model": {"lr": 0.1}}, "`lr` is a float, not a tensor"),
        ({3: torch.zeros(2)}, "not a state dict"),
    ],
    ids=["list", "tensor", "empty", "extra_number", "no_tensors", "integer_key"],
)
def test_not_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert message in error_of(tmp_path / "w.pth")


def test_missing_and_unexpected_keys_name_the_first_and_count_the_rest(tmp_path: Path) -> None:
    state = trained()
    for key in ("fc1.weight", "fc2.weight", "fc2.bias"):
        del state[key]
    state["head.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "w.safetensors")
    message = error_of(tmp_path / "w.safetensors")
    assert "does not fit teacher.name: `fc1.weight` and 2 more missing; `head.weight` unexpected" in message


def test_wrong_class_count(tmp_path: Path) -> None:
    save_file(trained(num_classes=7), tmp_path / "w.safetensors")
    message = error_of(tmp_path / "w.safetensors")
    assert "has 7 classes in `fc3.weight`, teacher.num_classes is 10" in message


def test_another_width_is_not_called_a_class_count(tmp_path: Path) -> None:
    state = trained(num_classes=7) | {"conv1.weight": torch.zeros(6, 1, 5, 5)}
    save_file(state, tmp_path / "w.safetensors")
    message = error_of(tmp_path / "w.safetensors")
    assert (
        "`conv1.weight` is [6, 1, 5, 5] in the file and [3, 1, 5, 5] in the network and 2 more differ"
        in message
    )


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    state = trained()
    state["fc1.bias"][3] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    assert "gives logits that are not finite" in error_of(tmp_path / "w.safetensors")
