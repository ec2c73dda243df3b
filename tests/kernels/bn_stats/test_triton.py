"""The Triton kernels: values and gradients (interpreted if there is no GPU), and compiled resources."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from torch import Tensor

from kernels.backend import use_backend
from kernels.bn_stats import bn_act, bn_stats
from kernels.bn_stats.reference import Activation, BatchNorm, bn_stats_reference
from tests.kernels.triton_tools import (
    MAIN_ARCHITECTURE,
    OTHER_ARCHITECTURES,
    REGISTERS_PER_SM,
    KernelCase,
    Resources,
    compile_all,
)

triton_bn_stats = pytest.importorskip("kernels.bn_stats.triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOAT = (2e-5, 2e-5)
# dtype: (atol, rtol) of results in x's dtype. The interpreter truncates to bfloat16, a GPU rounds.
TOLERANCES = {torch.float32: FLOAT, torch.bfloat16: (1e-3, 2**-7), torch.float16: (1e-3, 2**-10)}
SHAPES = [(2, 3, 5, 7), (4, 16, 8, 8), (1, 1, 1, 1), (3, 33, 4, 4), (5, 64, 1, 1), (2, 130, 3, 3)]
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
ACTIVATIONS: list[Activation] = ["none", "relu", "relu6", "leaky_relu", "silu"]
SLOPE, EPS, GRAD_LOSS = 0.1, 1e-3, 1.7


@dataclass
class Inputs:
    x: Tensor
    grad_y: Tensor
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    @property
    def parameters(self) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        return self.weight, self.bias, self.running_mean, self.running_var

    def norm(self, activation: Activation) -> BatchNorm:
        return BatchNorm(*self.parameters, EPS, activation, SLOPE)


def draw(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "channels_last",
    offset: float = 1.0,
) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    x = torch.randn(shape, generator=generator) * 2 + offset
    grad_y = torch.randn(shape, generator=generator)
    weight, bias, mean = torch.randn(3, channels, generator=generator)
    var = torch.rand(channels, generator=generator) + 0.5
    x, grad_y = (t.to(DEVICE, dtype).contiguous(memory_format=LAYOUTS[layout]) for t in (x, grad_y))
    return Inputs(x, grad_y, *(p.to(DEVICE) for p in (weight, bias, mean + offset, var)))


def ours(
    i: Inputs, activation: Activation, *, statistics: bool = True, affine: bool = True
) -> dict[str, Tensor]:
    norm = i.norm(activation)
    y, loss, coefficients = triton_bn_stats.forward(i.x, norm, statistics)
    grad_loss = torch.tensor(GRAD_LOSS, device=i.x.device) if statistics else None
    grad_x, grad_weight, grad_bias = triton_bn_stats.backward(
        i.grad_y, grad_loss, i.x, norm, coefficients, affine
    )
    assert y.stride() == grad_x.stride() == i.x.stride()
    assert y.dtype == grad_x.dtype == i.x.dtype
    out = {"y": y, "loss": loss, "grad_x": grad_x}
    if not affine:
        assert grad_weight.numel() == grad_bias.numel() == 0
        return out
    return out | {"grad_weight": grad_weight, "grad_bias": grad_bias}


def expected(i: Inputs, activation: Activation, *, statistics: bool = True) -> dict[str, Tensor]:
    """Return the results of autograd in float64."""
    x = i.x.double().requires_grad_()
    weight, bias = (
        torch.full((i.x.shape[1],), default, dtype=torch.float64) if p is None else p.double()
        for p, default in ((i.weight, 1.0), (i.bias, 0.0))
    )
    weight, bias = (p.to(DEVICE).requires_grad_() for p in (weight, bias))
    y, loss = bn_stats_reference(
        x,
        weight,
        bias,
        i.running_mean.double(),
        i.running_var.double(),
        eps=EPS,
        activation=activation,
        negative_slope=SLOPE,
    )
    loss = loss if statistics else loss.detach() * 0
    ((y * i.grad_y.double()).sum() + GRAD_LOSS * loss).backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    return {
        "y": y.detach(),
        "loss": loss.detach(),
        "grad_x": x.grad,
        "grad_weight": weight.grad,
        "grad_bias": bias.grad,
    }


def check(actual: dict[str, Tensor], reference: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, value in actual.items():
        atol, rtol = TOLERANCES[dtype] if name in ("y", "grad_x") else FLOAT
        if name in ("grad_weight", "grad_bias"):
            atol *= 10  # sums over the batch
        torch.testing.assert_close(
            value.double(),
            reference[name],
            atol=atol,
            rtol=rtol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small tensors need several programs, and every program several tiles."""
    monkeypatch.setattr(triton_bn_stats, "TILE", 32)
    monkeypatch.setattr(triton_bn_stats, "_max_programs", lambda *_: 6)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = draw(shape, dtype, layout)
    check(ours(inputs, "silu"), expected(inputs, "silu"), dtype)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 3, 7), (2, 12, 4, 5)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_tiles_and_partial_statistics(layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = draw(shape, dtype, layout)
    tiling = triton_bn_stats._tiling(inputs.x, triton_bn_stats.STATISTICS_PROGRAMS_PER_SM)
    assert tiling.programs > 1
    assert tiling.items > tiling.programs
    check(ours(inputs, "relu"), expected(inputs, "relu"), dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("statistics", [True, False], ids=["statistics", "no statistics"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "frozen"])
def test_every_setting(layout: str, activation: Activation, statistics: bool, affine: bool) -> None:
    inputs = draw((2, 6, 3, 4), torch.float32, layout)
    inputs.x[0] *= 4  # beyond relu6's upper bound
    actual = ours(inputs, activation, statistics=statistics, affine=affine)
    check(actual, expected(inputs, activation, statistics=statistics), torch.float32)


@pytest.mark.parametrize("missing", [["weight"], ["bias"], ["weight", "bias"]], ids=" and ".join)
def test_missing_weight_and_bias(missing: list[str]) -> None:
    inputs = replace(draw((2, 6, 3, 4)), **dict.fromkeys(missing))
    check(ours(inputs, "relu"), expected(inputs, "relu"), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_parameters_of_other_dtypes(dtype: torch.dtype) -> None:
    inputs = draw((2, 6, 3, 4))
    parameters = (p.to(dtype) for p in inputs.parameters if p is not None)
    inputs.weight, inputs.bias, inputs.running_mean, inputs.running_var = parameters
    check(ours(inputs, "relu"), expected(inputs, "relu"), torch.float32)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("offset", "dtype"), [(1e4, torch.bfloat16), (1e3, torch.float32)], ids=str)
def test_variance_far_from_zero(layout: str, offset: float, dtype: torch.dtype) -> None:
    """The running mean is far from the mean of the batch, so that it cannot serve as the centre."""
    inputs = draw((6, 4, 5, 5), dtype, layout, offset=0)
    spread = 64 if dtype == torch.bfloat16 else 1
    inputs.x = (inputs.x * spread + offset).to(dtype)
    _, loss, coefficients = triton_bn_stats.forward(inputs.x, inputs.norm("none"), True)
    var, mean = torch.var_mean(inputs.x.double(), (0, 2, 3), correction=0)
    d_var, d_mean = var - inputs.running_var, mean - inputs.running_mean
    assert loss.item() == pytest.approx((d_var.norm() + d_mean.norm()).item(), rel=1e-5)
    count = inputs.x.numel() // inputs.x.shape[1]
    torch.testing.assert_close(
        coefficients[1].double(), 2 * d_var / (count * d_var.norm()), rtol=1e-4, atol=1e-7, check_dtype=False
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_variance_with_an_outlier(layout: str) -> None:
    """The first row is unlike the thousands of rows that its program sums up after it."""
    inputs = draw((1, 2, 192, 192), torch.float32, layout)
    inputs.x[0, :, 0, 0] = 1e4
    _, loss, _ = triton_bn_stats.forward(inputs.x, inputs.norm("none"), True)
    var, mean = torch.var_mean(inputs.x.double(), (0, 2, 3), correction=0)
    expected_loss = (var - inputs.running_var).norm() + (mean - inputs.running_mean).norm()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)


@pytest.mark.parametrize("tile", [32, 2048])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_constant_channels(layout: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm of zero has a zero gradient: rounding must not turn it into a direction."""
    monkeypatch.setattr(triton_bn_stats, "TILE", tile)
    inputs = draw((3, 16, 3, 7), torch.float32, layout)
    mean = torch.linspace(-1000, 3000 / 7, 16, device=DEVICE)
    inputs = replace(inputs, x=torch.zeros_like(inputs.x) + mean.view(1, -1, 1, 1), running_mean=mean)
    inputs.running_var = torch.zeros_like(mean)
    _, loss, coefficients = triton_bn_stats.forward(inputs.x, inputs.norm("none"), True)
    assert loss == 0
    assert (coefficients == 0).all()
    inputs.running_var, inputs.running_mean = torch.ones_like(mean), mean / 3
    check(ours(inputs, "none"), expected(inputs, "none"), torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_at_the_kinks(activation: Activation) -> None:
    inputs = draw((2, 3, 3, 4))
    inputs.weight, inputs.bias = torch.zeros(3, device=DEVICE), torch.tensor([0.0, 6.0, -1.0], device=DEVICE)
    check(ours(inputs, activation), expected(inputs, activation), torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_not_hidden(activation: Activation) -> None:
    inputs = draw((2, 3, 2, 2))
    inputs.x[1, 2, 0, 1] = torch.nan
    y, loss, coefficients = triton_bn_stats.forward(inputs.x, inputs.norm(activation), True)
    assert y.isnan().sum() == y[1, 2, 0, 1].isnan().sum() == 1
    assert loss.isnan()
    assert coefficients.isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_through_the_op_and_autograd(layout: str) -> None:
    inputs = draw((3, 5, 4, 4), torch.bfloat16, layout)
    x, weight, bias = (t.clone().requires_grad_() for t in (inputs.x, inputs.weight, inputs.bias))
    statistics = inputs.running_mean, inputs.running_var
    with use_backend("triton"):
        y, loss = bn_stats(x, weight, bias, *statistics, eps=EPS, activation="relu")
        grad_y = inputs.grad_y.mT.contiguous().mT  # any strides
        torch.autograd.backward([y, loss], [grad_y, torch.tensor(GRAD_LOSS, device=DEVICE)])
        y_alone = bn_act(x, weight, bias, *statistics, eps=EPS, activation="relu")
    actual = {"y": y, "loss": loss, "grad_x": x.grad, "grad_weight": weight.grad, "grad_bias": bias.grad}
    check(actual, expected(inputs, "relu"), torch.bfloat16)
    assert torch.equal(y_alone, y)


@pytest.mark.parametrize("channels_last", [True, False])
def test_tiles_cover_the_tensor_once(channels_last: bool) -> None:
    for batch, channels, spatial in product(
        (1, 3, 200), (1, 3, 24, 64, 130, 2048), (1, 49, 196, 1024, 50176)
    ):
        tiling = triton_bn_stats.cut(channels_last, batch, channels, spatial, 2048, 528)
        rows = batch * spatial if channels_last else spatial
        assert tiling.block_r * tiling.block_c <= 2048
        assert tiling.items == -(-rows // tiling.block_r) * (1 if channels_last else batch)
        assert (channels if channels_last else spatial) % tiling.unit == 0
        programs, channel_blocks = tiling.grid
        assert channel_blocks * tiling.block_c >= channels
        assert 1 <= programs <= tiling.items
        assert programs == 1 or programs * channel_blocks <= 528


# The tiles of [200, 64, 32, 32], the widest and the tallest tiles, and those of an odd contiguous axis.
# name: (channels_last, B, C, H * W)
TILINGS = {
    "channels_last": (True, 200, 64, 1024),
    "channels_last wide": (True, 200, 128, 64),
    "nchw": (False, 200, 64, 1024),
    "nchw 14 x 14": (False, 200, 64, 196),
    "channels_last odd": (True, 200, 33, 49),
    "nchw odd": (False, 200, 512, 49),
}
MODULE = "kernels.bn_stats.triton"
PARAMETER = "*fp32:16"


def main_kernel_cases() -> Iterator[KernelCase]:
    """Use SiLU, which takes the most registers of the activations."""
    activation, variants = "silu", [*product(("channels_last", "nchw"), ("bf16", "fp32"))]
    variants += [(tiling, "bf16") for tiling in TILINGS if tiling not in ("channels_last", "nchw")]
    for tiling, dtype in variants:
        norm = BatchNorm(None, None, torch.empty(0), torch.empty(0), EPS, activation, SLOPE)
        tiles = triton_bn_stats.cut(*TILINGS[tiling], triton_bn_stats.TILE, 528)
        sizes = triton_bn_stats._sizes(tiles, norm)
        constexprs = {name: value for name, value in sizes.items() if name.isupper()}
        scalars = {"items": "i32", "rows": "i32", "channels": "i32", "eps": "fp32", "negative_slope": "fp32"}
        signature = dict.fromkeys(
            ("weight_ptr", "bias_ptr", "running_mean_ptr", "running_var_ptr"), PARAMETER
        )
        signature |= {"x_ptr": f"*{dtype}:16"} | scalars
        forward = signature | {"y_ptr": f"*{dtype}:16", "counts_ptr": "*i32:16", "partials_ptr": PARAMETER}
        backward = signature | {"grad_y_ptr": f"*{dtype}:16", "grad_x_ptr": f"*{dtype}:16"}
        backward |= dict.fromkeys(("grad_loss_ptr", "coefficients_ptr", "partials_ptr"), PARAMETER)
        for kernel, types, optional in (
            ("forward", forward, {"statistics": (), "apply": ("counts_ptr", "partials_ptr")}),
            ("backward", backward, {"affine": (), "frozen": ("partials_ptr",)}),
        ):
            for variant, absent in optional.items():
                yield KernelCase(
                    name=f"{kernel}, {tiling}, {dtype}, {variant}",
                    kernel=f"{MODULE}:_bn_stats_{kernel}_kernel",
                    signature={name: t for name, t in types.items() if name not in absent},
                    constexprs=constexprs | dict.fromkeys(absent),
                    num_warps=triton_bn_stats.NUM_WARPS,
                )


def small_kernel_cases() -> Iterator[KernelCase]:
    for block_p, block_c in ((1024, 4), (64, 64)):
        names = ("partials_ptr", "running_var_ptr", "deviations_ptr")
        yield KernelCase(
            name=f"combine, {block_p} x {block_c}",
            kernel=f"{MODULE}:_bn_stats_combine_kernel",
            signature=dict.fromkeys(names, PARAMETER)
            | {"counts_ptr": "*i32:16", "num_partials": "i32", "channels": "i32:16"},
            constexprs={"BLOCK_P": block_p, "BLOCK_C": block_c},
            num_warps=triton_bn_stats.NUM_WARPS,
        )
    names = ("deviations_ptr", "running_mean_ptr", "loss_ptr", "coefficients_ptr")
    yield KernelCase(
        name="loss",
        kernel=f"{MODULE}:_bn_stats_loss_kernel",
        signature=dict.fromkeys(names, PARAMETER) | {"count": "i32", "channels": "i32:16"},
        constexprs={"BLOCK_C": 1024},
        num_warps=triton_bn_stats.NUM_WARPS,
    )


PROGRAMS_PER_SM = {
    "apply": triton_bn_stats.PROGRAMS_PER_SM,
    "statistics": triton_bn_stats.STATISTICS_PROGRAMS_PER_SM,
    "frozen": triton_bn_stats.PROGRAMS_PER_SM,
    "affine": triton_bn_stats.AFFINE_PROGRAMS_PER_SM,
}
MAIN_KERNELS = {case.name: case for case in main_kernel_cases()}
CASES = [*MAIN_KERNELS.values(), *small_kernel_cases()]
LARGEST = [
    MAIN_KERNELS[f"{kernel}, {layout}, {dtype}, {variant}"]
    for (kernel, variant), layout, dtype in product(
        (("forward", "statistics"), ("backward", "affine")), ("channels_last", "nchw"), ("bf16", "fp32")
    )
]
COMPILED = [*product(CASES, [MAIN_ARCHITECTURE]), *product(LARGEST, OTHER_ARCHITECTURES)]


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, int], Resources]:
    return compile_all(COMPILED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "arch"), [pytest.param(*each, id=f"{each[1]}-{each[0].name}") for each in COMPILED]
)
def test_compiled_kernels(compiled: dict[tuple[str, int], Resources], arch: int, case: KernelCase) -> None:
    resources = compiled[case.name, arch]
    assert resources.spills == 0
    if case.name in MAIN_KERNELS:
        resident = PROGRAMS_PER_SM[case.name.rpartition(", ")[2]]
        assert resources.registers * 32 * case.num_warps * resident <= REGISTERS_PER_SM
        if "14 x 14" not in case.name and "odd" not in case.name:
            assert resources.load_bits == resources.store_bits == 128


@pytest.mark.slow
def test_spills_would_be_seen() -> None:
    case = MAIN_KERNELS["forward, channels_last, bf16, statistics"]
    (resources,) = compile_all([(replace(case, options={"maxnreg": 32}), MAIN_ARCHITECTURE)]).values()
    assert resources.registers <= 32
    assert resources.spills > 0
