"""The CLIP filter: cosines of V variations to their sources, with each source embedded once."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.images import noisy_copies, sources, to_pil
from bench.parity import require_alike
from bench.published.libraries import PublishedSimilarity
from bench.random_networks import open_clip_network
from bench.stages.case import Case, Machine, Ours, Work, flops
from engine.models.priors import ClipModel
from engine.paths import resolve
from engine.runtime.base import RuntimeOptions
from engine.runtime.micro_batch import MicroBatch
from engine.runtime.networks import clip_spec, open_clip
from engine.stages.batch import ImageBatch
from engine.stages.filter import embed, to_parents

EMBEDDED = "assets/fashion-mnist/open_clip"


@dataclass(frozen=True, kw_only=True)
class Size:
    """The amount of work in a case; `batch` images are embedded at once."""

    sources: int
    variations: int
    batch: int

    @property
    def images(self) -> int:
        """The number of images to embed."""
        return self.sources * (1 + self.variations)


SIZES = {
    "ViT-B-32": Size(sources=16, variations=1, batch=16),
    "embedded": Size(sources=256, variations=3, batch=256),
}


def cases(device: torch.device, _: int | None = None) -> list[Case]:
    networks = {"ViT-B-32": open_clip_network("ViT-B-32"), "embedded": load_network(EMBEDDED)}
    return [case(name, networks[name], size, device) for name, size in SIZES.items()]


def load_network(folder: str) -> Any:
    """Load an open_clip folder."""
    import open_clip

    return open_clip.create_model(f"local-dir:{resolve(folder, 'filter')}").eval().requires_grad_(False)


def case(name: str, network: Any, size: Size, device: torch.device) -> Case:
    """Compare open_clip's `network` with its image tower in our runtime."""
    clip = clip_of(network, device)
    batch = sources(size.sources, clip.size[0], variations=size.variations)
    varied = noisy_copies(batch, size.variations)
    published = PublishedSimilarity(
        model=network.to(device),
        preprocess=preprocess_of(network),
        copies=size.variations,
        batch=size.batch,
        device=device,
    )
    given = [to_pil(images) for images in (batch.images, varied.images)]
    pixels = [torch.stack([published.preprocess(image) for image in images]) for images in given]
    calls = {
        "open_clip as in its README, fp32": partial(published.of_images, *given),
        "open_clip, tensors in, fp32": partial(published.of_tensors, *pixels),
    }

    def of_ours(options: RuntimeOptions) -> Callable[[], Tensor]:
        opened = open_clip(clip, clip_spec(clip, rows=size.batch, runtime=options.runtime), options)
        return lambda: similarities(batch, varied, opened, MicroBatch("filter", size.batch))

    def open_ours(machine: Machine) -> Ours:
        ours = of_ours(machine.options)
        for baseline, call in calls.items():
            require_alike(f"filter/{name}, {baseline}", ours()[None], call()[None])
        plain = replace(machine.options, runtime="torch", precision="fp32", compiled=False)
        return Ours(
            work={f"filter/{name}": Work(call=ours, amount=size.images, runtime=machine.options.runtime)},
            flops=flops(of_ours(plain)) / size.images,
            dtype=machine.options.precision,
            shape=f"{size.sources} x {size.variations}, batch {size.batch}",
        )

    work = {baseline: Work(call=call, amount=size.images) for baseline, call in calls.items()}
    return Case(published=work, open=open_ours, unit="img/s")


def similarities(
    sources: ImageBatch, variations: ImageBatch, clip: ClipModel, micro_batch: MicroBatch
) -> Tensor:
    """Return the cosine of each variation and its source, float32 [V] on the CPU, as the filter does."""
    of_sources, of_variations = (embed(batch.images, clip, micro_batch) for batch in (sources, variations))
    return to_parents(of_variations, variations.parents, of_sources, sources.keys)


def preprocess_of(network: Any) -> Any:
    """Return open_clip's transform of PIL images for a model."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)


def clip_of(network: Any, device: torch.device) -> ClipModel:
    """Copy the network into the form that `load_clip` returns, without a runtime or a tokenizer."""
    settings = network.visual.preprocess_cfg
    size = settings["size"]
    own = copy.deepcopy(network).to(device)

    def not_open(_: object) -> Tensor:
        raise AssertionError("open it in a runtime first")

    return ClipModel(
        network=own,
        image_tower=not_open,
        tokenizer=not_open,
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        device=device,
    )
