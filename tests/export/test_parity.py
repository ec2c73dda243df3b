import json
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from export.parity import TOLERANCE, Parity, compare, reference
from export.spec import PRECISIONS, Axis, Input, NetworkSpec, Precision
from tests.rounding import Rounding, as_torch_rounds, rounding, rounding_spec

WANTED = torch.tensor([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]])


def parity(given: Tensor, wanted: Tensor = WANTED, precision: Precision = "fp32") -> Parity:
    return compare({"y": wanted}, {"y": given}, precision)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_error_is_relative_to_the_norm_of_all_samples() -> None:
    found = parity(WANTED + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
    assert found.relative_error == pytest.approx(2 / math.sqrt(29), rel=1e-12)
    assert found.cosine == pytest.approx(1 / math.sqrt(2), rel=1e-12)
    assert found.finite


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 6, 5), (1, 1), (4, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_error_and_cosine_against_sums_in_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    wanted, given = draw(*shape), (draw(*shape) + 0.1 * draw(*shape, seed=1)).to(dtype)
    a, b = given.double().flatten(1).tolist(), wanted.double().flatten(1).tolist()
    pairs = [list(zip(*rows, strict=True)) for rows in zip(a, b, strict=True)]
    squares = math.fsum((x - y) ** 2 for row in pairs for x, y in row)
    norm = math.fsum(y * y for row in pairs for _, y in row)
    cosines = [
        math.fsum(x * y for x, y in row)
        / math.sqrt(math.fsum(x * x for x, _ in row) * math.fsum(y * y for _, y in row))
        for row in pairs
    ]
    found = parity(given, wanted)
    assert found.relative_error == pytest.approx(math.sqrt(squares / norm), rel=1e-10)
    assert found.cosine == pytest.approx(min(cosines), rel=1e-10)


def test_errors_below_float32_are_seen() -> None:
    wanted = torch.full((1, 4), 1.0, dtype=torch.float64)
    assert parity(wanted + 1e-12, wanted).relative_error == pytest.approx(1e-12, rel=1e-3)


def test_large_values_do_not_overflow() -> None:
    wanted = torch.full((2, 1000), 3e38)
    assert parity(wanted / 2, wanted).relative_error == pytest.approx(0.5, rel=1e-6)


def test_the_cosine_comes_from_the_worst_sample() -> None:
    given = WANTED.clone()
    given[1] *= -1
    assert parity(given).cosine == pytest.approx(-1)
    assert parity(3 * WANTED).cosine == pytest.approx(1)


def test_the_worst_output_counts() -> None:
    good, bad = {"y": WANTED, "z": WANTED}, {"y": WANTED, "z": -WANTED}
    assert compare(good, good, "fp32") == parity(WANTED)
    assert compare(good, bad, "fp32") == parity(-WANTED)
    swapped = {"z": WANTED, "y": 2 * WANTED}
    assert compare({"y": 2 * WANTED, "z": WANTED}, swapped, "fp32").relative_error == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["given", "wanted", "both"])
@pytest.mark.parametrize("output", ["y", "z"])
def test_numbers_that_are_not_finite_never_pass(bad: float, side: str, output: str) -> None:
    broken = WANTED.clone()
    broken[1, 2] = bad
    sound = {"y": WANTED, "z": WANTED}
    wanted = sound | {output: broken} if side != "given" else sound
    given = sound | {output: broken} if side != "wanted" else sound
    found = compare(wanted, given, "fp16")
    assert not found.finite
    assert not found.passes
    assert math.isnan(found.relative_error)
    assert math.isnan(found.cosine)
    assert str(found) == "numbers that are not finite"


def test_only_zero_matches_a_zero_reference() -> None:
    zero = torch.zeros(2, 3)
    assert parity(zero, zero).passes
    found = parity(zero + 1e-30, zero)
    assert found.finite
    assert found.relative_error == math.inf
    assert not found.passes


def test_outputs_of_another_shape_are_not_compared() -> None:
    for given in (WANTED[:1], WANTED[:, :1], WANTED[None]):
        with pytest.raises(AssertionError):
            parity(given)
    with pytest.raises(KeyError):
        compare({"y": WANTED}, {"z": WANTED}, "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_tolerance_is_the_largest_error_that_passes(precision: Precision) -> None:
    edge = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}[precision]
    assert TOLERANCE[precision] == edge
    at = Parity(finite=True, relative_error=edge, cosine=1.0, precision=precision)
    assert at.passes
    assert not replace(at, relative_error=math.nextafter(edge, 1)).passes
    assert not replace(at, finite=False).passes
    assert not replace(at, relative_error=math.nan).passes
    assert parity(WANTED * (1 + 0.99 * edge), WANTED, precision).passes
    assert not parity(WANTED * (1 + 1.01 * edge), WANTED, precision).passes


def test_the_line_names_the_error_and_the_tolerance() -> None:
    found = Parity(finite=True, relative_error=0.12345, cosine=0.9, precision="fp16")
    assert str(found) == "relative error 1.2e-01 (at most 2e-02)"


def strict(text: str) -> object:
    def refuse(name: str) -> object:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    "found",
    [
        parity(WANTED + 1e-5),
        parity(WANTED, precision="bf16"),
        parity(WANTED + 1, torch.zeros(2, 3), "fp16"),
    ],
    ids=["small error", "none", "infinite"],
)
def test_json_gives_it_back(found: Parity) -> None:
    text = json.dumps(found.as_json())
    values = strict(text)
    assert isinstance(values, dict)
    assert values["passes"] is found.passes
    assert Parity.from_json(values) == found


def test_nan_is_null_in_json() -> None:
    found = parity(WANTED * math.nan, precision="bf16")
    values = strict(json.dumps(found.as_json()))
    assert values == {
        "finite": False,
        "relative_error": None,
        "cosine": None,
        "precision": "bf16",
        "passes": False,
    }
    back = Parity.from_json(values)
    assert math.isnan(back.relative_error)
    assert math.isnan(back.cosine)
    assert (back.finite, back.precision, back.passes) == (False, "bf16", False)


def test_the_reference_takes_inputs_and_names_outputs_in_the_order_of_the_spec() -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            return x - z, x * self.weight

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(3.0))

    batch = Axis(name="batch", min=1, opt=2, max=2)
    doors = (Input(name="x", shape=(batch, 3)), Input(name="z", shape=(batch, 3)))
    spec = NetworkSpec(name="net", module=Network(), inputs=doors, outputs=("first", "second"))
    x, z = draw(2, 3), draw(2, 3, seed=1)
    found = reference(spec, {"z": z, "x": x})
    assert (found["first"] == x - z).all()
    assert (found["second"] == 3 * x).all()
    assert not found["second"].requires_grad


@as_torch_rounds()
@pytest.mark.parametrize("fails", [False, True])
def test_the_reference_is_not_rounded_to_tf32(fails: bool) -> None:
    module, before = Rounding(fails=fails), rounding()
    assert before[0] == "tf32", "torch's default"
    with pytest.raises(ArithmeticError) if fails else nullcontext():
        reference(rounding_spec(module), {"x": draw(2, 3)})
    assert module.seen == [("ieee", "ieee")]
    assert rounding() == before
