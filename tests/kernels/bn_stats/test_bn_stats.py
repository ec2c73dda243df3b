"""BatchNorm, activation and statistics loss through the registered op, against float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels import _native
from kernels.backend import use_backend
from kernels.bn_stats import bn_act, bn_stats
from kernels.bn_stats.reference import bn_stats_reference

TOLERANCES = {  # dtype: (atol, rtol)
    torch.float32: (2e-6, 2e-6),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (2e-2, 1.6e-2),
}
ACTIVATIONS = ["none", "relu", "relu6", "leaky_relu", "silu"]
SHAPES = [
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (4, 16, 8, 8),
    (3, 33, 4, 4),
    (5, 64, 1, 1),
    (2, 130, 3, 3),
    (1, 2, 1, 300),
]
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(params=_native.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.isa()
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


def parameters(channels: int) -> dict[str, Tensor]:
    return {
        "weight": torch.rand(channels) + 0.5,
        "bias": torch.randn(channels),
        "running_mean": 0.3 * torch.randn(channels),
        "running_var": torch.rand(channels) + 0.5,
    }


def ours_and_reference(
    x: Tensor, p: dict[str, Tensor], *, affine: bool = False, **settings: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Return [y, loss, grad_x, (grad_weight, grad_bias)] of both, for a random grad_y and grad_loss = 3."""
    grad = torch.randn(x.shape).to(x.dtype).double()
    results = []
    for function, dtype in ((bn_stats, None), (bn_stats_reference, torch.float64)):
        own = x.detach().to(dtype or x.dtype, memory_format=torch.preserve_format).requires_grad_()
        q = {
            name: value.to(dtype or value.dtype).requires_grad_(affine and name in ("weight", "bias"))
            for name, value in p.items()
        }
        y, loss = function(own, **q, **settings)
        wanted = [own] + ([q["weight"], q["bias"]] if affine else [])
        grads = torch.autograd.grad([y, loss], wanted, [grad.to(y.dtype), torch.tensor(3.0).to(loss)])
        results.append([y.detach(), loss.detach(), *grads])
    return results[0], results[1]


def assert_close(ours: list[Tensor], reference: list[Tensor], dtype: torch.dtype) -> None:
    atol, rtol = TOLERANCES[dtype]
    for name, one, other in zip(
        ("y", "loss", "grad_x", "grad_weight", "grad_bias"), ours, reference, strict=False
    ):
        exact = name in ("loss", "grad_weight", "grad_bias")  # float32 for any x
        a, r = TOLERANCES[torch.float32] if exact else (atol, rtol)
        largest = float(other.abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(
            one.double(),
            other,
            atol=a * max(1.0, largest),
            rtol=10 * r if exact else r,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_values_and_gradients(dtype: torch.dtype, layout: str, activation: str) -> None:
    torch.manual_seed(0)
    for shape in SHAPES:
        x = (2 * torch.randn(shape) + 0.5).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        ours, reference = ours_and_reference(
            x, parameters(shape[1]), activation=activation, negative_slope=0.2
        )
        assert ours[0].dtype == x.dtype
        assert ours[0].stride() == x.stride()
        assert_close(ours, reference, dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_gradients_of_a_trainable_affine(dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(1)
    for shape in SHAPES:
        x = torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        for activation in ("relu", "silu"):
            assert_close(
                *ours_and_reference(x, parameters(shape[1]), affine=True, activation=activation), dtype
            )


@pytest.fixture
def past_the_caches() -> Iterator[None]:
    before = _native.last_level_cache_bytes()
    _native.set_last_level_cache_bytes(0)
    yield
    _native.set_last_level_cache_bytes(before)


@pytest.mark.usefixtures("isa", "past_the_caches")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_results_written_past_the_caches(dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(0)
    for shape in [*SHAPES, (6, 32, 8, 8)]:
        x = torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        assert_close(*ours_and_reference(x, parameters(shape[1]), activation="relu"), dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(64, 19, 9, 11), (7, 16, 96, 96), (130, 48, 4, 4)], ids=str)
def test_statistics_over_many_blocks_and_chunks(shape: tuple[int, ...], layout: str) -> None:
    torch.manual_seed(2)
    x = (3 * torch.randn(shape) - 1).contiguous(memory_format=LAYOUTS[layout])
    assert_close(*ours_and_reference(x, parameters(shape[1]), activation="relu", affine=True), torch.float32)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_offset_does_not_cancel(layout: str) -> None:
    torch.manual_seed(3)
    for dtype, offset, spread in ((torch.float32, 1e4, 1.0), (torch.bfloat16, 1e4, 300.0)):
        x = (spread * torch.randn(50, 24, 6, 6) + offset).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        p = parameters(24) | {
            "running_mean": torch.full((24,), offset),
            "running_var": torch.full((24,), spread**2),
        }
        _, loss = bn_stats(x, **p)
        _, exact = bn_stats_reference(x.double(), **{name: value.double() for name, value in p.items()})
        torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_outlier_first_does_not_spoil_the_variance(layout: str) -> None:
    torch.manual_seed(4)
    x = torch.randn(40, 16, 8, 8).contiguous(memory_format=LAYOUTS[layout])
    x[0, :, 0, 0] = 1e4
    p = parameters(16)
    _, loss = bn_stats(x, **p)
    _, exact = bn_stats_reference(x.double(), **{name: value.double() for name, value in p.items()})
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_constant_channels_have_no_variance_and_a_finite_gradient(layout: str) -> None:
    x = torch.full((4, 17, 5, 5), 3.1).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    p = parameters(17)
    _, loss = bn_stats(x, **p)
    expected = (
        p["running_var"].double().norm()
        + (x[0, :, 0, 0].detach().double() - p["running_mean"].double()).norm()
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.isfinite().all()


def test_if_the_statistics_match_the_gradient_of_the_norms_is_zero() -> None:
    x = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).requires_grad_()
    y, loss = bn_stats(x, None, None, torch.tensor([2.0]), torch.tensor([1.0]))
    assert loss == 0
    (grad,) = torch.autograd.grad(loss, x)
    assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.usefixtures("isa")
def test_nan_and_infinity_reach_the_output_and_the_loss() -> None:
    for bad in (torch.nan, torch.inf):
        x = torch.zeros(2, 16, 4, 4)
        x[1, 3, 2, 2] = bad
        y, loss = bn_stats(x, **parameters(16), activation="relu")
        assert not y[1, 3, 2, 2].isfinite()
        assert y.isfinite().sum() == x.numel() - 1
        assert not loss.isfinite()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_without_statistics_only_the_output(activation: Any) -> None:
    x, p = torch.randn(3, 20, 4, 4, requires_grad=True), parameters(20)
    expected, _ = bn_stats_reference(x, **p, activation=activation)
    y = bn_act(x, **p, activation=activation)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(v.square().sum(), x)[0] for v in (y, expected)), rtol=1e-4, atol=1e-4
    )


def test_no_weight_no_bias_and_parameters_of_another_dtype() -> None:
    x, p = torch.randn(3, 20, 4, 4).bfloat16(), parameters(20)
    half = {name: value.bfloat16() for name, value in p.items()}
    y, loss = bn_stats(x, None, None, p["running_mean"], p["running_var"])
    exact, exact_loss = bn_stats_reference(
        x.double(), None, None, p["running_mean"].double(), p["running_var"].double()
    )
    torch.testing.assert_close(y.double(), exact, atol=2e-2, rtol=1.6e-2)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-5, atol=0)
    y, _ = bn_stats(x, **half)
    exact, _ = bn_stats_reference(x.double(), **{name: value.double() for name, value in half.items()})
    torch.testing.assert_close(y.double(), exact, atol=2e-2, rtol=1.6e-2)


def test_layers_of_one_graph_may_share_their_input_and_parameters() -> None:
    x, p = torch.randn(4, 8, 3, 3, requires_grad=True), parameters(8)
    y, first = bn_stats(x, **p, activation="relu")
    z, second = bn_stats(x + y, **p)
    w, third = bn_stats_reference(x, **p, activation="relu")
    v, fourth = bn_stats_reference(x + w, **p)
    (ours,) = torch.autograd.grad(z.sum() + first + second, x)
    (theirs,) = torch.autograd.grad(v.sum() + third + fourth, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_one_output_alone_gives_its_gradient() -> None:
    x, p = torch.randn(4, 8, 3, 3, requires_grad=True), parameters(8)
    for index in (0, 1):
        ours, theirs = (
            torch.autograd.grad(f(x, **p, activation="relu")[index].sum(), x)[0]
            for f in (bn_stats, bn_stats_reference)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_gradient_in_another_layout_and_an_input_that_is_not_dense() -> None:
    x, p = torch.randn(4, 8, 6, 6), parameters(8)
    sliced = x[:, :, ::2].detach().requires_grad_()
    y, loss = bn_stats(sliced, **p)
    expected, expected_loss = bn_stats_reference(sliced, **p)
    torch.testing.assert_close(y, expected)
    grad = torch.randn(y.shape).contiguous(memory_format=torch.channels_last)
    ours, theirs = (
        torch.autograd.grad([a, b], sliced, [grad, torch.ones(())])[0]
        for a, b in ((y, loss), (expected, expected_loss))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
@pytest.mark.filterwarnings("ignore:var_mean")
def test_an_empty_input_gives_an_empty_output(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True)
    y = bn_act(x, **parameters(shape[1]), activation="relu")
    assert y.shape == shape
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.shape == shape
    y, loss = bn_stats(x, **parameters(shape[1]))
    assert y.shape == shape
    assert loss.isnan() == (shape[1] > 0)  # the mean of no elements is NaN, the norm over no channels is 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_number_of_threads_changes_no_bit(layout: str) -> None:
    x = torch.randn(70, 24, 9, 9).contiguous(memory_format=LAYOUTS[layout])
    p, found = parameters(24), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(results(x, p))
    torch.set_num_threads(2)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def results(x: Tensor, p: dict[str, Tensor]) -> list[Tensor]:
    own = x.clone(memory_format=torch.preserve_format).requires_grad_()
    weight = p["weight"].clone().requires_grad_()
    y, loss = bn_stats(own, weight, p["bias"], p["running_mean"], p["running_var"], activation="silu")
    return [y.detach(), loss.detach(), *torch.autograd.grad(y.sum() + loss, [own, weight])]


def test_the_plain_torch_fallback_equals_autograd() -> None:
    x, p = torch.randn(3, 5, 4, 4, dtype=torch.float64), {n: v.double() for n, v in parameters(5).items()}
    for activation in ACTIVATIONS:
        ours, reference = ours_and_reference(x, p, affine=True, activation=activation)
        torch.testing.assert_close(ours, reference)


def test_gradcheck_in_float64() -> None:
    x, p = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True), parameters(3)
    weight, bias = (p[n].double().requires_grad_() for n in ("weight", "bias"))
    statistics = p["running_mean"].double(), p["running_var"].double()
    assert torch.autograd.gradcheck(
        lambda x, weight, bias: bn_stats(x, weight, bias, *statistics, activation="silu"), (x, weight, bias)
    )


def test_the_override_chooses_the_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **_by_name: Any) -> None:
        raise AssertionError("the native kernel ran")

    monkeypatch.setattr(_native, "bn_stats_forward", refuse)
    x, p = torch.randn(2, 3, 4, 4), parameters(3)
    with use_backend("torch"):
        y, _ = bn_stats(x, **p)
    torch.testing.assert_close(y, bn_stats_reference(x, **p)[0])
    with pytest.raises(AssertionError, match="native"):
        bn_stats(x, **p)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="instruction set is 'mmx', but .* baseline$"):
        _native.select_isa("mmx")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("affine", [False, True], ids=["frozen", "trainable"])
def test_the_op_is_registered_well(affine: bool) -> None:
    x, p = torch.randn(2, 3, 4, 4, requires_grad=True), parameters(3)
    p = {n: v.requires_grad_(affine and n in ("weight", "bias")) for n, v in p.items()}
    for own in (x, x.detach().to(memory_format=torch.channels_last).requires_grad_()):
        arguments = (own, *p.values(), 1e-5, "relu", 0.01, True)
        assert set(torch.library.opcheck(torch.ops.kernels.bn_stats.default, arguments).values()) == {
            "SUCCESS"
        }


def test_it_compiles_as_one_graph() -> None:
    layer = nn.BatchNorm2d(8).eval().requires_grad_(False)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        y, loss = bn_stats(
            x.sin(), layer.weight, layer.bias, layer.running_mean, layer.running_var, activation="relu"
        )
        return y.square().mean(), loss

    x = torch.randn(4, 8, 5, 5, requires_grad=True)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x), step(x), strict=True):
        torch.testing.assert_close(a, b)
    ours, theirs = (torch.autograd.grad(sum(f(x)), x)[0] for f in (compiled, step))
    torch.testing.assert_close(ours, theirs)


def test_the_backward_op_is_registered_well() -> None:
    x, p = torch.randn(2, 3, 4, 4), parameters(3)
    norm = *p.values(), 1e-5, "relu", 0.01
    y, loss, coefficients = torch.ops.kernels.bn_stats(x, *norm, True)
    for grad_loss in (torch.ones_like(loss), None):
        arguments = (torch.ones_like(y), grad_loss, x, *norm, coefficients, True)
        checks = torch.library.opcheck(torch.ops.kernels.bn_stats_backward.default, arguments)
        assert set(checks.values()) == {"SUCCESS"}


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y, loss = bn_stats(x, **parameters(3))
    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(y.sum() + loss, x, create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"\[B, C, H, W\], not torch.float32 \[2, 3, 4\]"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.long)}, "must be floating point"),
        ({"weight": torch.ones(4)}, r"must be \[3\] on cpu, not \[4\] on cpu"),
        ({"running_var": torch.ones(3, device="meta")}, r"not \[3\] on meta"),
        ({"activation": "gelu"}, "activation is 'gelu'; choose one of none, relu"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 4, 4), **parameters(3)} | change
    for function in (bn_stats, bn_act):
        with pytest.raises(ValueError, match=message):
            function(**arguments)
