"""Batch sizes, and batches of any size in pieces that an engine takes."""

import pytest
import torch
from torch import Tensor, nn

from engine.runtime.batching import batch_sizes, check_sizes, pieces, ranges, rows
from export.errors import ExportError
from export.spec import Axis, Input, NetworkSpec

BATCH = Axis(name="batch", min=2, opt=3, max=4)
HEIGHT = Axis(name="height", min=16, opt=32, max=64, multiple=8)
WIDTH = Axis(name="width", min=32, opt=32, max=32)
SPEC = NetworkSpec(
    name="tiny",
    module=nn.Identity(),
    inputs=(Input(name="x", shape=(BATCH, 3, HEIGHT, WIDTH)), Input(name="time", shape=(1,))),
    outputs=("y",),
)


def call(batch: int, height: int = 32, width: int = 32) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, 3, height, width), "time": torch.tensor([500.0])}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(0, 1, 2)]),
        (2, [(0, 2, 2)]),
        (4, [(0, 4, 4)]),
        (5, [(0, 4, 4), (4, 5, 2)]),
        (11, [(0, 4, 4), (4, 8, 4), (8, 11, 3)]),
    ],
)
def test_a_batch_is_split_at_the_maximum_and_padded_to_the_minimum(
    count: int, expected: list[tuple[int, int, int]]
) -> None:
    assert list(ranges(count, BATCH)) == expected


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_pieces_have_every_row_once_and_all_of_inputs_without_a_batch(count: int) -> None:
    inputs = call(count)
    split = list(pieces(SPEC, inputs))
    assert rows(SPEC, inputs) == count
    assert all(BATCH.min <= len(piece["x"]) <= BATCH.max for piece in split)
    assert torch.equal(torch.cat([piece["x"] for piece in split])[:count], inputs["x"])
    assert torch.equal(split[-1]["x"][-1], inputs["x"][-1])
    assert all(piece["time"] is inputs["time"] for piece in split)


def test_whole_pieces_are_not_copied() -> None:
    inputs = call(8)
    first, second = pieces(SPEC, inputs)
    assert first["x"].data_ptr() == inputs["x"].data_ptr()
    assert second["x"].data_ptr() == inputs["x"][4:].data_ptr()


@pytest.mark.parametrize("height", [16, 24, 64])
def test_sizes_within_the_range_are_taken(height: int) -> None:
    check_sizes(SPEC, call(100, height))


@pytest.mark.parametrize(
    "inputs",
    [
        call(2, height=8),
        call(2, height=72),
        call(2, height=20),
        call(2, width=40),
        call(0),
        {**call(2), "x": torch.randn(2, 4, 32, 32)},
        {**call(2), "x": torch.randn(2, 3, 32)},
    ],
    ids=["below", "above", "no multiple", "fixed", "empty", "channels", "rank"],
)
def test_other_sizes_are_rejected_with_the_range(inputs: dict[str, Tensor]) -> None:
    with pytest.raises(ExportError) as error:
        check_sizes(SPEC, inputs)
    assert str(error.value) == (
        f"tiny: input x has shape {list(inputs['x'].shape)}, but its engine takes"
        " [batch, 3, height 16 to 64 in steps of 8, 32];"
        " resize the images, or export the network for other sizes"
    )


def test_inputs_with_different_batches_are_rejected() -> None:
    spec = NetworkSpec(
        name="tiny",
        module=nn.Identity(),
        inputs=(Input(name="a", shape=(BATCH,)), Input(name="b", shape=(BATCH,))),
        outputs=("y",),
    )
    with pytest.raises(ValueError, match=r"rows"):
        list(pieces(spec, {"a": torch.zeros(2), "b": torch.zeros(3)}))


@pytest.mark.parametrize(
    ("rows", "tuned"), [(1, 1), (2, 1), (7, 4), (16, 8), (64, 32), (256, 32)], ids=lambda value: str(value)
)
def test_on_a_cpu_a_call_is_at_least_two_requests_of_at_most_32_rows(rows: int, tuned: int) -> None:
    assert batch_sizes("openvino", rows) == (1, tuned, rows)


def test_other_runtimes_take_a_call_as_one_batch() -> None:
    assert batch_sizes("tensorrt", 256) == (1, 256, 256)
