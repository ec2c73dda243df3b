"""Check whether TensorRT engines run on this GPU, what they compute, and how fast.

The network is the shipped CLIP image tower, built once for the builder's list of GPUs and once for this GPU.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch

from bench.machine import describe, gemm_ceiling
from bench.rows import Row, commit
from bench.stages.case import flops
from bench.stages.filter import EMBEDDED, clip_of, load_network
from bench.timing import milliseconds
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.config.tensorrt import TensorRtConfig
from engine.runtime import artifacts
from engine.runtime.base import RuntimeOptions, runtime_options
from engine.runtime.networks import clip_spec
from engine.runtime.open import open_runtime
from engine.runtime.tensorrt import require_gpu
from export.errors import ExportError
from export.parity import compare, reference
from export.spec import DTYPES, NetworkSpec

BATCH = 256
TARGETS: dict[str, tuple[Literal["current"], ...]] = {
    "portable engine": (),
    "engine for this GPU": ("current",),
}


def rows() -> Iterator[Row]:
    """Yield a row for each engine that runs here; for any other, print why not and what torch runs on."""
    compute = resolve_compute(ComputeConfig(runtime="tensorrt", runtime_precision="fp16"), must_run=False)
    device = torch.device(compute.device)
    spec = clip_spec(clip_of(load_network(EMBEDDED), device), rows=BATCH, runtime="tensorrt")
    for name, capabilities in TARGETS.items():
        config = TensorRtConfig(compute_capabilities=capabilities)
        options = runtime_options(compute, config, device)
        try:
            entry = artifacts.engine(spec, artifacts.graph(spec, options), options)
            print(
                f"{name}: built; here it is {_validity(options.store.read(entry, artifacts.ENGINE))}",
                flush=True,
            )
            require_gpu()
            yield _measured(name, spec, options)
        except ExportError as error:
            print(f"{name}: does not run here: {error}; {_what_runs(device)}", flush=True)


def _validity(engine: bytes) -> str:
    """Return TensorRT-RTX's verdict on an engine for this machine, before loading it."""
    from export.tensorrt.bindings import IS_RTX, LOGGER, trt
    from export.tensorrt.loading import diagnosis

    if not IS_RTX or not torch.cuda.is_available():
        return "not checked: " + ("classic TensorRT has no such check" if not IS_RTX else "there is no GPU")
    validity, bits = trt.Runtime(LOGGER).get_engine_validity(engine)
    why = "" if validity == trt.EngineValidity.VALID else f": {diagnosis(bits)}"
    return f"{validity.name}{why}"


def _what_runs(device: torch.device) -> str:
    name = describe(device)
    if device.type == "cuda":
        name += " (compute capability {}.{})".format(*torch.cuda.get_device_capability(device))
    return f"--runtime torch runs on {name}"


def _measured(name: str, spec: NetworkSpec, options: RuntimeOptions) -> Row:
    tensorrt = open_runtime(spec, options)
    eager = open_runtime(spec, replace(options, runtime="torch"))
    inputs = {key: value.to(options.device) for key, value in spec.example({"batch": BATCH}).items()}
    parity = compare(reference(spec, inputs), tensorrt(**inputs), options.precision)
    print(f"{name}: relative error against torch in fp32 {parity.relative_error:.1e}", flush=True)
    ceiling = gemm_ceiling(options.device, DTYPES[options.precision])
    calls = {
        "ours": lambda: tensorrt(**inputs),
        "torch": lambda: eager(**inputs),
        "gemm": ceiling.call,
    }
    ms = milliseconds(calls, options.device)
    return Row(
        case=f"tensorrt/clip, {name}",
        baseline="runtime torch, eager",
        ours=ms["ours"],
        theirs=ms["torch"],
        unit="ms",
        ratio=ms["torch"] / ms["ours"],
        floor=ceiling.ms(flops(lambda: eager(**inputs)), ms["gemm"]),
        device=describe(options.device),
        dtype=options.precision,
        shape=f"batch {BATCH}",
        commit=commit(),
    )
