"""Runtime torch: precision, compilation, and padding to the compiled batch size."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.runtime.micro_batch import MicroBatch
from engine.runtime.torch import TorchExecutable
from export.parity import compare, reference
from export.spec import NetworkSpec
from tests.engine.runtime.conditioned import CHUNK, conditioned_spec
from tests.rounding import Rounding, as_torch_rounds, rounding, rounding_spec


@pytest.fixture(scope="module")
def spec() -> NetworkSpec:
    return conditioned_spec()


def test_torch_autocasts_and_returns_float32(spec: NetworkSpec) -> None:
    inputs = spec.example({"batch": 3})
    wanted = reference(spec, inputs)
    exact = TorchExecutable(spec, "fp32", torch.device("cpu"))(**inputs)
    assert all(torch.equal(exact[name], wanted[name]) for name in wanted)
    rounded = TorchExecutable(spec, "bf16", torch.device("cpu"))(**inputs)
    found = compare(wanted, rounded, "bf16")
    assert found.passes
    assert found.relative_error > 1e-5, "autocast was on"
    assert all(value.dtype == torch.float32 for value in rounded.values())


@as_torch_rounds()
@pytest.mark.parametrize(("precision", "inside"), [("fp32", "ieee"), ("bf16", "tf32")])
def test_torch_in_fp32_is_not_rounded_to_tf32(precision: str, inside: str) -> None:
    """In bf16, the process-wide setting stays unchanged."""
    module, before = Rounding(), rounding()
    TorchExecutable(rounding_spec(module), precision, torch.device("cpu"))(x=torch.zeros(2, 3))
    assert module.seen[0][0] == inside
    assert rounding() == before


class Counted:
    """Replaces inductor in `torch.compile` and counts compilations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch._dynamo.testing import CompileCounter

        self.counter, compile_it = CompileCounter(), torch.compile
        torch._dynamo.reset()

        def counted(module: nn.Module, *, dynamic: bool, **_: str) -> Any:
            return compile_it(module, backend=self.counter, dynamic=dynamic)

        monkeypatch.setattr(torch, "compile", counted)

    @property
    def times(self) -> int:
        return self.counter.frame_count


def check_rows(spec: NetworkSpec, executable: TorchExecutable, sizes: list[int]) -> None:
    for count in sizes:
        inputs = spec.example({"batch": count}, seed=count)
        given, wanted = executable(**inputs), reference(spec, inputs)
        assert {name: len(value) for name, value in given.items()} == {"hidden": count, "logits": count}
        assert compare(wanted, given, "fp32").passes


def test_torch_compiles_once_for_batches_up_to_opt(
    spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Counted(monkeypatch)
    executable = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    check_rows(spec, executable, [1, CHUNK, CHUNK - 1, 2, CHUNK])
    assert compiled.times == 1


def test_torch_compiles_again_for_a_larger_batch_and_then_pads_to_it(
    spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Counted(monkeypatch)
    executable = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    check_rows(spec, executable, [CHUNK, 3 * CHUNK, CHUNK, 2 * CHUNK + 1])
    assert compiled.times == 2


def test_batches_halved_for_lack_of_memory_are_not_padded_to_the_failed_size(
    spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Counted(monkeypatch)
    executable = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    inputs = spec.example({"batch": 7})
    ran: list[int] = []

    def too_small(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        ran.append(len(given[0]))
        if len(given[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def run(piece: slice) -> Tensor:
        return executable(images=inputs["images"][piece], shift=inputs["shift"])["logits"]

    executable._forward, forward = spec.module, executable._forward  # hooks break the graph
    with spec.module.register_forward_pre_hook(too_small):
        logits = torch.cat(list(MicroBatch("augment", CHUNK).over(7, run)))
    assert ran == [CHUNK, 2, 2, 2, 2]
    torch.testing.assert_close(logits, reference(spec, inputs)["logits"])
    executable._forward = forward
    check_rows(spec, executable, [2, 1])
    assert compiled.times == 1


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_that_fits_only_without_padding_runs(count: int, spec: NetworkSpec) -> None:
    executable = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    executable._forward = spec.module
    ran: list[int] = []

    def too_small(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        ran.append(len(given[0]))
        if len(given[0]) > count:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with spec.module.register_forward_pre_hook(too_small):
        check_rows(spec, executable, [count])
        check_rows(spec, executable, [1])
    assert ran == [CHUNK, count, count, count, 1]  # the second of each pair is the reference's


def test_padding_keeps_channels_last(spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Counted(monkeypatch)
    executable = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    for count in (CHUNK, 1, 2, CHUNK):
        inputs = spec.example({"batch": count})
        images = inputs["images"].to(memory_format=torch.channels_last)
        given = executable(images=images, shift=inputs["shift"])
        assert compare(reference(spec, inputs), given, "fp32").passes
    assert compiled.times == 1


def test_torch_without_compilation_does_not_pad() -> None:
    module = Rounding()
    ran: list[int] = []
    module.register_forward_pre_hook(lambda _, given: ran.append(len(given[0])))
    executable = TorchExecutable(rounding_spec(module), "fp32", torch.device("cpu"))
    for count in (1, 5, 2):
        executable(x=torch.zeros(count, 3))
    assert ran == [1, 5, 2]


@pytest.mark.slow
def test_inductor_matches_eager(spec: NetworkSpec) -> None:
    inputs = spec.example({"batch": 3})
    compiled = TorchExecutable(spec, "fp32", torch.device("cpu"), compiled=True)
    assert compare(reference(spec, inputs), compiled(**inputs), "fp32").passes
