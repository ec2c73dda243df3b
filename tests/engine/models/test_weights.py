"""Weights from files: every wrapper that is tolerated, and every file that is refused."""

import json
import os
import pickle
import tarfile
from argparse import Namespace
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import UserError
from engine.models.classifier import Classifier
from engine.models.loading import ClassifierConfig, load_classifier
from engine.models.networks import lenet_5_half, wrn_16_1, wrn_40_1
from tests.classifiers import classifier_config

State = dict[str, Tensor]
LENET = classifier_config(name="engine:lenet_5_half", in_channels=1)


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


class Settings(dict[str, object]):
    """A dict with attributes, as configuration libraries have them."""


class Mode(Enum):
    TRAIN = 1


FOREIGN = {
    "args": Namespace(lr=0.1, out=Path("x")),
    "best": np.float64(93.1),
    "array": np.arange(3),
    "settings": Settings(a=1),
    "mode": Mode.TRAIN,
    "when": datetime(2024, 1, 2),
    "history": defaultdict(list, {"loss": [1.0]}),
    "recent": deque([1, 2]),
    "activation": torch.nn.functional.relu,
}
"""What people keep beside weights."""

WRAPPERS: dict[str, Callable[[State], object]] = {
    "plain": lambda s: s,
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1, "state": {0: {"exp_avg": torch.ones(3)}}}},
    "any_name": lambda s: {"epoch": 1, "my_weights": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "in_a_list": lambda s: [1, s],
    "lightning": lambda s: {"state_dict": prefixed("model.", s) | {"loss.weight": torch.ones(10)}},
    "long_prefix": lambda s: prefixed("net.backbone.", s),
    "compiled_and_parallel": lambda s: {"state_dict": prefixed("module._orig_mod.", s)},
    "compiled_inside": lambda s: {key.replace("fc1.", "fc1._orig_mod."): value for key, value in s.items()},
    "averaged": lambda s: {"model": prefixed("module.", s) | {"n_averaged": torch.tensor(4)}},
    "counter_and_number": lambda s: {**s, "n_averaged": torch.tensor(4), "epoch": 3},
    "foreign": lambda s: {"model": s, **FOREIGN},
    "kind_of_dict": lambda s: Settings(model=s),
    "twice_the_same": lambda s: {"model": s, "ema": {key: value.clone() for key, value in s.items()}},
}


@pytest.mark.parametrize("of_old_torch", [False, True])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_one_mapping_that_fits_is_read(
    tmp_path: Path, wrap: Callable[[State], object], of_old_torch: bool
) -> None:
    state = trained()
    torch.save(wrap(state), tmp_path / "w.pth", _use_new_zipfile_serialization=not of_old_torch)
    classifier = load(tmp_path / "w.pth")
    torch.testing.assert_close(dict(classifier.network.state_dict()), state, rtol=0, atol=0)
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.ckpt", "w.pth.tar"])
def test_names_of_torch_files(tmp_path: Path, name: str) -> None:
    state = trained()
    torch.save({"state_dict": state}, tmp_path / name)
    assert torch.equal(load(tmp_path / name).network.state_dict()["fc3.bias"], state["fc3.bias"])


def test_half_precision_is_read_into_float32(tmp_path: Path) -> None:
    state = trained()
    torch.save({key: value.bfloat16() for key, value in state.items()}, tmp_path / "w.pth")
    loaded = load(tmp_path / "w.pth").network.state_dict()["fc1.weight"]
    assert torch.equal(loaded, state["fc1.weight"].bfloat16().float())


def test_a_link_keeps_its_name(tmp_path: Path) -> None:
    save_file(trained(), tmp_path / "0123abcd")  # as in the cache of a hub
    (tmp_path / "w.safetensors").symlink_to(tmp_path / "0123abcd")
    load(tmp_path / "w.safetensors")


def sharded(folder: Path, state: State, name: str = "model-{}-of-2.safetensors") -> Path:
    files = {key: name.format(number % 2 + 1) for number, key in enumerate(state)}
    for file in set(files.values()):
        shard = {key: value for key, value in state.items() if files[key] == file}
        (save_file if file.endswith(".safetensors") else torch.save)(shard, folder / Path(file).name)
    index = folder / f"{Path(name).name.partition('-')[0]}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


@pytest.mark.parametrize("name", ["model-{}-of-2.safetensors", "pytorch_model-{}-of-2.bin"])
def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path, name: str) -> None:
    state = trained()
    loaded = load(sharded(tmp_path, state, name)).network.state_dict()
    torch.testing.assert_close(dict(loaded), state, rtol=0, atol=0)


def test_an_index_reads_files_next_to_it_only(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    index = sharded(tmp_path / "in", trained(), "../model-{}-of-2.safetensors")
    assert "names '../model-1-of-2.safetensors', which is not a file next to it" in error_of(index)


def test_faults_of_an_index(tmp_path: Path) -> None:
    index = sharded(tmp_path, trained())
    save_file({"other": torch.zeros(1)}, tmp_path / "model-1-of-2.safetensors")
    with pytest.raises(UserError, match=r"^teacher\.weights: .*model-1-of-2.* has no `conv1\.weight`"):
        load(index)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    assert "names 'model-2-of-2.safetensors', which is not next to it" in error_of(index)
    index.write_text("[]")
    assert "is not an index of weights" in error_of(index)


def two_sets() -> tuple[State, State, dict[str, object]]:
    """Two states, and ways to keep both in a file as `a` and `b`."""
    a, b = trained(), trained()
    prefixes = prefixed("a.", a) | prefixed("b.module.", b)
    return a, b, {"mappings": {"a": a, "b": prefixed("module.", b)}, "prefixes": prefixes}


@pytest.mark.parametrize("way", ["mappings", "prefixes"])
def test_of_several_that_fit_one_must_be_named(tmp_path: Path, way: str) -> None:
    a, b, ways = two_sets()
    torch.save(ways[way], tmp_path / "w.pth")
    message = error_of(tmp_path / "w.pth")
    assert "several state dicts that fit teacher.name, with different values: `a`, `b`" in message
    assert "choose one, e.g. --teacher.weights_key b" in message
    for key, state in (("a", a), ("b", b)):
        loaded = load(tmp_path / "w.pth", replace(LENET, weights_key=key))
        assert torch.equal(loaded.network.state_dict()["fc1.weight"], state["fc1.weight"])
    with pytest.raises(UserError, match=r"^teacher\.weights_key: .* under 'c'; it has `a`, `b`$"):
        load(tmp_path / "w.pth", replace(LENET, weights_key="c"))


def test_an_average_inside_the_state_dict_is_not_taken_for_it(tmp_path: Path) -> None:
    raw, average = trained(), trained()
    save_file(raw | prefixed("ema.", average), tmp_path / "w.safetensors")
    assert "different values: `.`, `ema`" in error_of(tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors", replace(LENET, weights_key="."))
    assert torch.equal(loaded.network.state_dict()["fc1.weight"], raw["fc1.weight"])


def test_a_deeper_network_of_the_same_layers_does_not_fit(tmp_path: Path) -> None:
    torch.save(wrn_40_1(10).state_dict(), tmp_path / "w.pth")
    message = error_of(tmp_path / "w.pth", classifier_config(name="engine:wrn_16_1"))
    assert "`stages.0.2.bn1.weight` and 119 more unexpected" in message


QUANTIZED: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda w: w.mul(100).to(torch.int8),
    "float8_e4m3fn": lambda w: w.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_quantized_weights_are_refused(tmp_path: Path, dtype: str) -> None:
    state = trained()
    state["conv1.weight"] = QUANTIZED[dtype](state["conv1.weight"])
    torch.save(state, tmp_path / "w.pth")
    message = error_of(tmp_path / "w.pth")
    assert f"has {dtype} values in `conv1.weight`, float32 in the network: quantized weights" in message


def test_what_does_not_fit_is_named_with_its_differences(tmp_path: Path) -> None:
    a, b, _ = two_sets()
    del a["fc1.weight"]
    b["head.weight"] = torch.ones(2)
    torch.save({"a": a, "b": b, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, tmp_path / "w.pth")
    message = error_of(tmp_path / "w.pth")
    assert "`a` does not fit teacher.name: `fc1.weight` missing" in message
    assert "`b` does not fit teacher.name: `head.weight` unexpected" in message
    assert "exp_avg" not in message


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
    classifier = load(tmp_path / "w.pt", classifier_config(name="engine:wrn_16_1"))
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


@pytest.mark.parametrize("name", ["w.onnx", "folder.pth"])
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


@pytest.mark.parametrize(
    "call", [(eval, "1"), (exec, "1"), (getattr, "a", "b")], ids=["eval", "exec", "getattr"]
)
def test_a_call_of_a_builtin_is_refused_even_beside_weights_that_fit(
    tmp_path: Path, call: tuple[Callable, str]
) -> None:
    class Calling:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return call[0], call[1:]

    torch.save({"model": trained(), "more": Calling()}, tmp_path / "w.pth")
    assert "could run code" in error_of(tmp_path / "w.pth")


@pytest.mark.parametrize("alone", [True, False])
def test_a_whole_pickled_module_is_refused_by_its_name(tmp_path: Path, alone: bool) -> None:
    network = lenet_5_half(10, 1)
    torch.save(network if alone else {"model": network, "epoch": 3}, tmp_path / "w.pth")
    holds = "a whole pickled" if alone else "`model` (a pickled"
    message = error_of(tmp_path / "w.pth")
    assert f"holds {holds} engine.models.lenet.LeNet" in message
    assert "not a state dict; save the state_dict()" in message


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "w.pt")
    assert "is a TorchScript program, not a state dict; save torch.jit.load" in error_of(tmp_path / "w.pt")


def test_an_archive_of_files_is_refused_by_its_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "w.tar", "w"):
        pass
    assert "is a tar archive; unpack it" in error_of(tmp_path / "w.tar")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list, not a state dict"),
        (torch.zeros(2), "holds a Tensor, not a state dict"),
        ({}, "holds a dict, not a state dict"),
        ({"model": {"lr": 0.1}, "epoch": 3}, "holds `model` (dict), `epoch` (int), not a state dict"),
        ({3: torch.zeros(2)}, "not a state dict"),
    ],
    ids=["list", "tensor", "empty", "no_tensors", "integer_key"],
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
    assert "has 7 classes in `fc3.weight`, but teacher.num_classes is 10" in message


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
    assert "produces logits that are not finite" in error_of(tmp_path / "w.safetensors")


def test_weights_that_see_nothing(tmp_path: Path) -> None:
    state = trained()
    state["fc1.weight"].zero_()
    save_file(state, tmp_path / "w.safetensors")
    assert "produces the same logits for every image" in error_of(tmp_path / "w.safetensors")


def test_copies_of_another_precision_are_not_the_same(tmp_path: Path) -> None:
    state = trained()
    torch.save({"a": state, "b": {key: value.half() for key, value in state.items()}}, tmp_path / "w.pth")
    assert "with different values: `a`, `b`" in error_of(tmp_path / "w.pth")
