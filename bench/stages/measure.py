"""Measure the cases of the stages, alternating published calls with ours."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import torch

from bench.calls import as_published
from bench.machine import describe, gemm_ceiling
from bench.rows import Row, commit
from bench.stages import augment, distill, filter, methods, synthesize, teacher
from bench.stages.case import Case, Machine, Work
from bench.timing import milliseconds
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.config.tensorrt import TensorRtConfig
from engine.distributed import open_accelerator
from engine.runtime.base import runtime_options
from export.spec import DTYPES

STAGES: dict[str, Callable[[torch.device, int | None], list[Case]]] = {
    "synthesize": synthesize.cases,
    "methods": methods.cases,
    "augment": augment.cases,
    "filter": filter.cases,
    "distill": distill.cases,
    "teacher": teacher.cases,
}
"""(device, batch size or None for the default) -> cases. `augment` and `filter` have fixed sizes."""
SHOWN: dict[str, Callable[[float], float]] = {"ms": lambda ms: ms, "img/s": lambda ms: 1000 / ms}
"""Converts milliseconds per step or image to a row's unit."""


def rows(
    names: Sequence[str], config: ComputeConfig, *, seconds: float = 5.0, batch: int | None = None
) -> Iterator[Row]:
    """Yield rows of the named stages, in the runtime of `config` or the machine's default.

    Each call is measured for `seconds`, with `batch` images at once if given. Published calls run under
    torch's default cuDNN flags, ours under the engine's. On a CPU, published calls are also measured before
    the engine is opened, as their users run them: afterwards the process keeps freed memory.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    compute = resolve_compute(config)
    device = torch.device(compute.device)
    cases = [case for name in names for case in STAGES[name](device, batch)]
    published = {id(case.published): case.published for case in cases} if device.type == "cpu" else {}
    alone = {key: _ms_each(work, device, seconds) for key, work in published.items()}
    accelerator = open_accelerator(compute)
    machine = Machine(accelerator=accelerator, options=runtime_options(compute, TensorRtConfig(), device))
    for case in cases:
        yield from _rows(case, alone.get(id(case.published), {}), machine, seconds)


def _ms_each(published: Mapping[str, Work], device: torch.device, seconds: float) -> dict[str, float]:
    """Return the milliseconds per step or image of each published call, measured alone."""
    return {
        name: milliseconds({name: work.call}, device, seconds=seconds)[name] / work.amount
        for name, work in published.items()
    }


def _rows(case: Case, fresh: dict[str, float], machine: Machine, seconds: float) -> Iterator[Row]:
    device = machine.options.device
    ours = case.open(machine)
    ceiling = gemm_ceiling(device, DTYPES[ours.dtype])
    work = {**ours.work, **case.published}
    calls = {name: each.call for name, each in work.items()}
    calls |= {name: as_published(each.call) for name, each in case.published.items()}
    ms = milliseconds(calls | {"gemm": ceiling.call}, device, seconds=seconds)
    per_unit = {name: ms[name] / each.amount for name, each in work.items()}
    in_turns = {name: per_unit[name] for name in case.published}
    kept = {f"{name}, memory kept": value for name, value in in_turns.items()}
    shown = SHOWN[case.unit]
    for name, (baseline, theirs) in product(ours.work, (fresh | kept if fresh else in_turns).items()):
        yield Row(
            case=name,
            baseline=baseline,
            ours=shown(per_unit[name]),
            theirs=shown(theirs),
            unit=case.unit,
            ratio=theirs / per_unit[name],
            floor=shown(ceiling.ms(ours.flops, ms["gemm"])),
            device=describe(device),
            dtype=ours.dtype,
            shape=", ".join(part for part in (ours.shape, ours.work[name].runtime) if part),
            commit=commit(),
        )
