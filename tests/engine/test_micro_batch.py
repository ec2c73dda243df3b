"""Micro-batches that are halved where memory runs out, by its real errors, too."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.cli import main
from engine.errors import OutOfMemoryError
from engine.micro_batch import MicroBatch, is_out_of_memory

GPU_MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 512.00 MiB free."


def fits(most: int, error: Exception, tried: list[int]) -> Callable[[slice], list[int]]:
    """Gives the indices of a piece of up to `most`."""

    def work(piece: slice) -> list[int]:
        tried.append(piece.stop - piece.start)
        if piece.stop - piece.start > most:
            raise error
        return list(range(piece.start, piece.stop))

    return work


def flat(pieces: Any) -> list[int]:
    return [index for piece in pieces for index in piece]


@pytest.mark.parametrize(("count", "size"), [(0, 4), (1, 4), (4, 4), (9, 4), (5, 1)])
def test_pieces_cover_all_in_order(count: int, size: int) -> None:
    tried: list[int] = []
    assert flat(MicroBatch("augment", size).over(count, fits(size, ValueError(), tried))) == list(
        range(count)
    )
    assert tried == [min(size, count - begin) for begin in range(0, count, size)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(GPU_MESSAGE),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you"),
        MemoryError("std::bad_alloc"),
    ],
    ids=["GPU", "CPU", "C++"],
)
def test_it_is_halved_for_good_and_the_same_images_are_done_again(error: Exception) -> None:
    said: list[str] = []
    tried: list[int] = []
    micro_batch = MicroBatch("augment", 16, said.append)
    assert flat(micro_batch.over(20, fits(5, error, tried))) == list(range(20))
    assert tried == [16, 8, 4, 4, 4, 4, 4]
    assert said == [
        "augment: out of memory with 16 images at once, going on with 8; put augment.micro_batch: 8 into the"
        " recipe",
        "augment: out of memory with 8 images at once, going on with 4; put augment.micro_batch: 4 into the"
        " recipe",
    ]
    assert flat(micro_batch.over(8, fits(5, error, tried))) == list(range(8))
    assert tried[7:] == [4, 4]
    assert len(said) == 2


def test_a_last_piece_that_fails_is_halved_itself() -> None:
    tried: list[int] = []
    micro_batch = MicroBatch("filter", 100, lambda _: None)
    assert flat(micro_batch.over(6, fits(2, MemoryError(), tried))) == list(range(6))
    assert tried == [6, 3, 1, 1, 1, 1, 1, 1]


def test_a_single_image_too_many_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    micro_batch = MicroBatch("filter", 2, lambda _: None)

    def command(_: object) -> None:
        list(micro_batch.over(3, fits(0, torch.OutOfMemoryError(GPU_MESSAGE), [])))

    assert main(command, []) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: filter: out of memory with a single image at once; ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes"), ValueError("x"), OSError(12, "ENOMEM")]
)
def test_other_errors_are_raised_as_they_are(error: Exception) -> None:
    tried: list[int] = []
    with pytest.raises(type(error)) as caught:
        list(MicroBatch("filter", 8).over(8, fits(0, error, tried)))
    assert caught.value is error
    assert tried == [8]


def test_an_error_of_ours_is_not_taken_for_one_of_memory() -> None:
    assert not is_out_of_memory(OutOfMemoryError("synthesize: out of memory. with 200 images"))


REAL = """
import resource, sys
import torch
from engine.micro_batch import MicroBatch

torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000,) * 2)
MB = 1 << 20
sums = MicroBatch("augment", 64).over(64, lambda piece: torch.ones(piece.stop - piece.start, 16 * MB).sum(1))
print(int(torch.cat(list(sums)).sum()) == 64 * 16 * MB)
"""


def test_the_host_s_own_error_is_recognised_and_what_was_taken_is_free_again() -> None:
    """4 GiB for all at once, of 0.6 GB that the process may still have."""
    found = subprocess.run(
        [sys.executable, "-c", REAL], capture_output=True, text=True, timeout=200, check=False
    )
    assert found.stderr == ""
    *said, last = found.stdout.splitlines()
    assert last == "True"
    sizes = [int(line.split("going on with ")[1].split(";")[0]) for line in said]
    assert sizes[:3] == [32, 16, 8]
    assert sizes[-1] in (8, 4)
