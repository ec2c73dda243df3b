"""The CLIP filter on B sources with a variation each. The baseline gets images that are already tensors."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.images import noisy_copies, sources, to_pil
from bench.parity import require_close
from bench.production.job import Candidate, Job, Make
from bench.production.variations import Wanted
from bench.production.ways import BASELINES, OURS, require_here
from bench.published.libraries import PublishedSimilarity
from bench.random_networks import open_clip_network
from bench.stages.case import flops
from bench.stages.filter import clip_of, preprocess_of, similarities
from engine.models.priors import ClipModel
from engine.runtime.base import RuntimeOptions
from engine.runtime.micro_batch import MicroBatch
from engine.runtime.networks import clip_spec, open_clip

NETWORK = "ViT-B-32"


def jobs(wanted: Wanted, options: RuntimeOptions) -> Iterator[Job]:
    """Yield a job per batch size."""
    network = open_clip_network(NETWORK, dtype=wanted.dtype, device=options.device)
    clip = clip_of(network.float(), options.device)
    network.to(wanted.dtype)
    for batch in wanted.batches:
        plain = replace(options, runtime="torch", precision="bf16", compiled=False)
        yield Job(
            case=f"filter/{NETWORK}",
            shape=f"batch {batch}",
            batch=2 * batch,
            steps=(1,),
            ours={
                label: Candidate(
                    open=partial(_ours, clip, batch, replace(options, **changes)), dtype=changes["precision"]
                )
                for way in wanted.ways
                for label, changes in OURS[way].items()
            },
            theirs={
                f"open_clip {BASELINES[way]}, {str(wanted.dtype).removeprefix('torch.')}": Candidate(
                    open=partial(_theirs, network, wanted.dtype, batch, options.device, way == "compiled"),
                    dtype="",
                )
                for way in wanted.ways
                if way in BASELINES
            },
            flops=partial(_flops_of_one, clip, batch, plain),
            require_same=require_close,
        )


def _ours(clip: ClipModel, batch: int, options: RuntimeOptions) -> Make:
    require_here(options)
    given = sources(batch, clip.size[0], variations=1)
    varied = noisy_copies(given, 1)
    opened = open_clip(clip, clip_spec(clip, rows=batch, runtime=options.runtime), options)
    return lambda _: similarities(given, varied, opened, MicroBatch("filter", batch))[None]


def _theirs(network: Any, dtype: torch.dtype, batch: int, device: torch.device, compiled: bool) -> Make:
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    preprocess = preprocess_of(network)
    given = sources(batch, preprocess.transforms[0].size, variations=1)
    pixels = [
        torch.stack([preprocess(image) for image in to_pil(images)]).to(dtype)
        for images in (given.images, noisy_copies(given, 1).images)
    ]
    published = PublishedSimilarity(
        model=_Compiled(network, mode) if compiled else network,
        preprocess=preprocess,
        copies=1,
        batch=batch,
        device=device,
    )
    return lambda _: published.of_tensors(*pixels)[None]


class _Compiled:
    def __init__(self, network: Any, mode: str) -> None:
        self._encode = torch.compile(network.encode_image, mode=mode)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self._encode(pixels).clone()  # the next replay overwrites it


def _flops_of_one(clip: ClipModel, batch: int, options: RuntimeOptions, _: int) -> float:
    make = _ours(clip, batch, options)
    return flops(lambda: make(1)) / (2 * batch)
