"""Which steps of making a shard run side by side, and on how many CPU threads each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from engine.config.compute import ComputeConfig
from engine.config.recipe import Recipe

Step = Literal["synthesize", "augment", "filter"]
STEPS: tuple[Step, ...] = ("synthesize", "augment", "filter")


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Steps that run one after the other, beside those of the other lanes."""

    steps: tuple[Step, ...]
    threads: int


def one_lane(compute: ComputeConfig) -> tuple[Lane, ...]:
    """All steps one after the other, each on all threads of a settled configuration."""
    assert compute.threads is not None
    return (Lane(steps=STEPS, threads=compute.threads),)


def lanes(recipe: Recipe) -> tuple[Lane, ...]:
    """Those of a settled recipe whose shards are made independently.

    On a CPU their threads sum to `compute.threads`: the filter, which does least, gets one, or shares that of
    augment where there are two in all; the rest is halved. On a GPU threads only launch; each lane has all.
    """
    compute = recipe.compute
    if not compute.overlap or recipe.augment.method == "none":
        return one_lane(compute)
    threads = compute.threads
    assert threads is not None
    if compute.device == "cuda":
        return tuple(Lane(steps=(step,), threads=threads) for step in STEPS)
    if threads == 2:
        return Lane(steps=("synthesize",), threads=1), Lane(steps=("augment", "filter"), threads=1)
    for_synthesis = (threads - 1) // 2
    shares = for_synthesis, threads - 1 - for_synthesis, 1
    return tuple(Lane(steps=(step,), threads=share) for step, share in zip(STEPS, shares, strict=True))


def threads_of(lanes: tuple[Lane, ...], step: Step) -> int:
    """The CPU threads that `step` runs on."""
    return next(lane.threads for lane in lanes if step in lane.steps)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch computes on `count` threads what the calling thread asks of it inside; other threads keep theirs.

    A thread takes the last count that any thread has set when it is first asked for its own, so it is asked
    here before it is set.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, what the calling thread launches inside runs on a stream of its own, and is done at the end.

    It waits for what the default stream has been given so far, such as the loading of weights.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()
