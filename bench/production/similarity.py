"""The CLIP filter of B sources and a variation of each; the baseline is given transformed tensors."""

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
from bench.published.similarity import PublishedSimilarity
from bench.random_networks import open_clip_network
from bench.stages.case import flops
from bench.stages.filter import clip_of, preprocess_of
from engine.models.priors import ClipModel
from engine.runtime.clip import open_clip
from engine.runtime.place import Place
from engine.stages.filter import similarities
from engine.stages.micro_batch import MicroBatch

NETWORK = "ViT-B-32"


def jobs(wanted: Wanted, place: Place) -> Iterator[Job]:
    """One for each batch."""
    network = open_clip_network(NETWORK, dtype=wanted.dtype, device=place.device)
    clip = clip_of(network.float(), place.device)
    network.to(wanted.dtype)
    for batch in wanted.batches:
        plain = replace(place, runtime="torch", precision="bf16", compiled=False)
        yield Job(
            case=f"filter/{NETWORK}",
            shape=f"batch {batch}",
            batch=2 * batch,
            steps=(1,),
            ours={
                label: Candidate(
                    open=partial(_ours, clip, batch, replace(place, **changes)), dtype=changes["precision"]
                )
                for way in wanted.ways
                for label, changes in OURS[way].items()
            },
            theirs={
                f"open_clip {BASELINES[way]}, {str(wanted.dtype).removeprefix('torch.')}": Candidate(
                    open=partial(_theirs, network, wanted.dtype, batch, place.device, way == "compiled"),
                    dtype="",
                )
                for way in wanted.ways
                if way in BASELINES
            },
            flops=partial(_flops_of_one, clip, batch, plain),
            require_same=require_close,
        )


def _ours(clip: ClipModel, batch: int, place: Place) -> Make:
    require_here(place)
    given = sources(batch, clip.size[0], variations=1)
    varied = noisy_copies(given, 1)
    opened = open_clip(clip, batch, place)
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
        return self._encode(pixels).clone()  # the next replay would overwrite it


def _flops_of_one(clip: ClipModel, batch: int, place: Place, _: int) -> float:
    make = _ours(clip, batch, place)
    return flops(lambda: make(1)) / (2 * batch)
