"""Measure autocast, memory layout, cuDNN benchmarking and graphs on Stable Diffusion 1.5's UNet."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.calls import cudnn_flags
from bench.random_networks import UNET_16M, UNET_SD_1_5, init_weights, uninitialized
from bench.smoke.probe import Probe
from export.float32 import exact_float32

FEW, MANY = 2, 32
REPEATS = 8
CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
Pass = Callable[[], Tensor]


@dataclass(frozen=True)
class Inputs:
    """Latents [B, 4, H, W], a timestep, and embeddings [B, 1, D]."""

    latents: Tensor
    timestep: Tensor
    embeddings: Tensor

    @classmethod
    def of(cls, config: Mapping[str, Any], batch: int, device: torch.device) -> "Inputs":
        side, width = config["sample_size"], config["cross_attention_dim"]
        return cls(
            torch.randn(batch, 4, side, side, device=device),
            torch.full((1,), 500, device=device),
            torch.randn(batch, 1, width, device=device),
        )

    def to(self, dtype: torch.dtype) -> "Inputs":
        return Inputs(self.latents.to(dtype), self.timestep, self.embeddings.to(dtype))

    def through(self, network: Any) -> Tensor:
        return network(self.latents, self.timestep, self.embeddings, return_dict=False)[0]


def few(probe: Probe) -> Mapping[str, object]:
    return _ways_to_run(FEW, probe)


def many(probe: Probe) -> Mapping[str, object]:
    probe.require_gpu()
    return _ways_to_run(MANY, probe)


def _ways_to_run(batch: int, probe: Probe) -> Mapping[str, object]:
    """Return the milliseconds of a pass and its relative error to exact float32, for each way to run it."""
    import diffusers

    config = UNET_SD_1_5 if probe.on_gpu else UNET_16M
    with uninitialized(torch.float32, probe.device):
        network = init_weights(diffusers.UNet2DConditionModel(**config))
    dtype = torch.float16 if probe.on_gpu else torch.bfloat16
    half = copy.deepcopy(network).to(dtype)
    found: dict[str, object] = {"batch": batch}
    inputs = Inputs.of(config, batch, probe.device)
    with torch.no_grad(), exact_float32(), cudnn_flags(deterministic=False, benchmark=False):
        wanted = inputs.through(network.to(memory_format=CONTIGUOUS))
    for name, call, flags in _ways(network, half, inputs, dtype, probe):
        with torch.no_grad(), flags:
            error = _distance(call(), wanted)
            found[name] = f"{probe.ms(call, REPEATS):.3g} ms, {error:.0e}"
            if name.startswith("half") and probe.on_gpu:
                found[f"{name}, graph"] = probe.ms(probe.as_graph(call), REPEATS)
    return found


def _ways(
    network: Any, half: Any, inputs: Inputs, dtype: torch.dtype, probe: Probe
) -> Iterator[tuple[str, Pass, AbstractContextManager[None]]]:
    """Yield a name, a forward pass, and the cuDNN flags to run it under."""
    flags = partial(cudnn_flags, deterministic=False)
    network.to(memory_format=CHANNELS_LAST)

    def under_autocast() -> Tensor:
        with torch.autocast(probe.device.type, dtype):
            return inputs.through(network)

    yield "autocast, channels_last", under_autocast, flags(benchmark=False)
    small = inputs.to(dtype)
    half.to(memory_format=CONTIGUOUS)
    yield "half", lambda: small.through(half), flags(benchmark=False)
    half.to(memory_format=CHANNELS_LAST)
    yield "half, channels_last", lambda: small.through(half), flags(benchmark=False)
    yield "half, channels_last, benchmark", lambda: small.through(half), flags(benchmark=True)


def _distance(ours: Tensor, wanted: Tensor) -> float:
    return ((ours.float() - wanted).norm() / wanted.norm()).item()
