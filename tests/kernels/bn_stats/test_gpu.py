"""The op on a GPU: against float64 and the C++ kernels, repeated, and inside a CUDA graph."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from kernels.backend import backend_for
from kernels.bn_stats import Activation, bn_act, bn_stats
from kernels.bn_stats.reference import bn_stats_reference

pytestmark = pytest.mark.gpu

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = [
    (200, 32, 32, 32),
    (200, 128, 8, 8),
    (200, 512, 7, 7),
    (17, 24, 14, 14),
    (8, 3, 224, 224),
    (9, 33, 5, 3),
]
# dtype: (atol, rtol) of y and grad_x
TOLERANCES = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (1e-3, 2**-8), torch.float16: (1e-3, 2**-10)}
ACTIVATIONS: list[Activation] = ["none", "relu", "relu6", "leaky_relu", "silu"]
GRAD_LOSS = 1.7


class Batch:
    """x [B, C, H, W], the gradient of y, and the parameters of the layer, on the GPU."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        x, grad_y = torch.randn(2, *shape, generator=generator)
        weight, bias, mean = torch.randn(3, shape[1], generator=generator).cuda()
        var = torch.rand(shape[1], generator=generator).cuda() + 0.5
        self.x, self.grad_y = (
            t.to("cuda", dtype).contiguous(memory_format=LAYOUTS[layout]) for t in (x * 2 + 1, grad_y)
        )
        self.parameters = weight, bias, mean, var

    def gradients(self, y: Tensor, loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        grad_loss = torch.full_like(loss, GRAD_LOSS)
        return torch.autograd.grad([y, loss], inputs, [self.grad_y.to(y), grad_loss])


def run(batch: Batch, activation: Activation) -> dict[str, Tensor]:
    x, weight, bias = (t.detach().requires_grad_() for t in (batch.x, *batch.parameters[:2]))
    y, loss = bn_stats(x, weight, bias, *batch.parameters[2:], activation=activation)
    gradients = batch.gradients(y, loss, x, weight, bias)
    names = ("y", "loss", "grad_x", "grad_weight", "grad_bias")
    return dict(zip(names, (y.detach(), loss.detach(), *gradients), strict=True))


def run_reference(batch: Batch, activation: Activation) -> dict[str, Tensor]:
    x, weight, bias = (t.double().requires_grad_() for t in (batch.x, *batch.parameters[:2]))
    mean, var = (p.double() for p in batch.parameters[2:])
    y, loss = bn_stats_reference(x, weight, bias, mean, var, activation=activation)
    gradients = batch.gradients(y, loss, x, weight, bias)
    names = ("y", "loss", "grad_x", "grad_weight", "grad_bias")
    return dict(zip(names, (y.detach(), loss.detach(), *gradients), strict=True))


def check(actual: dict[str, Tensor], expected: dict[str, Tensor], batch: Batch) -> None:
    rows = batch.x.numel() // batch.x.shape[1]
    for name, value in actual.items():
        atol, rtol = TOLERANCES[batch.x.dtype] if name in ("y", "grad_x") else (2e-5, 2e-5)
        if name in ("grad_weight", "grad_bias"):
            atol *= rows**0.5
        torch.testing.assert_close(
            value.double(),
            expected[name],
            atol=atol,
            rtol=rtol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@contextmanager
def without_synchronisation() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.fixture(autouse=True)
def _triton_is_what_runs() -> None:
    assert backend_for(torch.ones(1, device="cuda")) == "triton"


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch = Batch(shape, dtype, layout)
    actual = run(batch, "silu")
    assert actual["y"].stride() == actual["grad_x"].stride() == batch.x.stride()
    check(actual, run_reference(batch, "silu"), batch)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations(layout: str, activation: Activation) -> None:
    """Compare no gradient of a z so close to a kink that rounding decides on which side it is."""
    batch = Batch((40, 64, 16, 16), torch.float32, layout)
    actual, expected = run(batch, activation), run_reference(batch, activation)
    mean, var = (p.view(1, -1, 1, 1).double() for p in batch.parameters[2:])
    weight, bias = (p.view(1, -1, 1, 1).double() for p in batch.parameters[:2])
    z = (batch.x.double() - mean) * weight / (var + 1e-5).sqrt() + bias
    at_a_kink = (z.abs() < 1e-4) | ((z - 6).abs() < 1e-4)
    assert at_a_kink.float().mean() < 1e-3
    for result in (actual, expected):
        result["grad_x"] = result["grad_x"].masked_fill(at_a_kink, 0)
        del result["grad_weight"], result["grad_bias"]
    check(actual, expected, batch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_cpu(layout: str) -> None:
    batch = Batch((64, 64, 8, 8), torch.float32, layout)
    on_gpu = run(batch, "silu")
    batch.x, batch.grad_y = batch.x.cpu(), batch.grad_y.cpu()
    batch.parameters = tuple(p.cpu() for p in batch.parameters)
    assert backend_for(batch.x) == "cpp"
    on_cpu = run(batch, "silu")
    check(
        {name: t.cpu() for name, t in on_gpu.items()}, {name: t.double() for name, t in on_cpu.items()}, batch
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_variance_far_from_zero(layout: str) -> None:
    batch = Batch((64, 32, 16, 16), torch.bfloat16, layout)
    batch.x = batch.x * 64 + 1e4
    batch.x[:, 0] = 1e4  # a constant channel
    x = batch.x.double()
    _, loss = bn_stats(batch.x, *batch.parameters)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    expected = (var - batch.parameters[3]).norm() + (mean - batch.parameters[2]).norm()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zero_norms_have_zero_gradients(layout: str) -> None:
    batch = Batch((50, 32, 7, 7), torch.float32, layout)
    weight, bias, mean, var = batch.parameters
    x = torch.zeros_like(batch.x) + 1000 * mean.view(1, -1, 1, 1)
    x.requires_grad_()
    _, loss = bn_stats(x, weight, bias, 1000 * mean, torch.zeros_like(var))
    loss.backward()
    assert loss == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_every_time(layout: str) -> None:
    batch = Batch((200, 128, 8, 8), torch.bfloat16, layout)
    first, second = run(batch, "relu"), run(batch, "relu")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_nothing_waits_for_the_device() -> None:
    batch = Batch((16, 32, 8, 8), torch.bfloat16, "channels_last")
    run(batch, "relu")  # compiles
    with without_synchronisation():
        run(batch, "relu")
        bn_act(batch.x, *batch.parameters, activation="relu")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_graph(layout: str) -> None:
    """A replay reads the new contents of the captured tensors."""
    batch, other = (Batch((32, 64, 16, 16), torch.bfloat16, layout, seed) for seed in (0, 1))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(batch, "silu")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(batch, "silu")
    batch.x.copy_(other.x)
    batch.grad_y.copy_(other.grad_y)
    for ours, theirs in zip(batch.parameters, other.parameters, strict=True):
        ours.copy_(theirs)
    graph.replay()
    eager = run(other, "silu")
    for name, value in eager.items():
        assert torch.equal(captured[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_than_2_to_the_31_elements(layout: str) -> None:
    """All zeros except for the last image, whose elements are beyond 32-bit offsets."""
    batch_size = 2**31 // (64 * 32 * 32) + 8
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of free device memory")
    last = Batch((1, 64, 32, 32), torch.bfloat16, layout)
    weight, bias, mean, var = last.parameters
    x = torch.zeros((batch_size, 64, 32, 32), dtype=torch.bfloat16, device="cuda")
    x = x.contiguous(memory_format=LAYOUTS[layout])
    x[-1:] = last.x
    x.requires_grad_()
    y, loss = bn_stats(x, weight, bias, mean, var)
    (grad_x,) = torch.autograd.grad([y.sum(), loss], x, [None, torch.tensor(GRAD_LOSS, device="cuda")])

    tail = last.x.double()
    expected_y, _ = bn_stats_reference(tail, *(p.double() for p in last.parameters))
    torch.testing.assert_close(y[-1:].double(), expected_y, atol=1e-3, rtol=2**-8)
    expected_mean = tail.mean((0, 2, 3)) / batch_size
    expected_var = tail.square().mean((0, 2, 3)) / batch_size - expected_mean**2
    expected_loss = (expected_mean - mean).norm() + (expected_var - var).norm()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-4)
    scale = (weight / (var + 1e-5).sqrt()).view(
        1, -1, 1, 1
    )  # the statistics change a gradient by at most 1 / 2**31
    torch.testing.assert_close(grad_x[-1:].float(), scale.expand(grad_x[-1:].shape), atol=1e-3, rtol=2**-8)
