"""The CLIP filter: cosines of V variations to their sources, each source embedded once."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.images import noisy_copies, sources, to_pil
from bench.parity import require_alike
from bench.published.similarity import PublishedSimilarity
from bench.random_networks import open_clip_network
from bench.stages.case import Case, Machine, Ours, Work, flops
from engine.models.priors import ClipModel
from engine.paths import resolve
from engine.runtime.clip import open_clip
from engine.runtime.place import Place
from engine.stages.filter import similarities
from engine.stages.micro_batch import MicroBatch

EMBEDDED = "assets/fashion-mnist/open_clip"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work a case is; `batch` images are embedded at once."""

    sources: int
    variations: int
    batch: int

    @property
    def images(self) -> int:
        """All that are embedded."""
        return self.sources * (1 + self.variations)


SIZES = {
    "ViT-B-32": Size(sources=16, variations=1, batch=16),
    "embedded": Size(sources=256, variations=3, batch=256),
}


def cases(device: torch.device, _: int | None = None) -> list[Case]:
    networks = {"ViT-B-32": open_clip_network("ViT-B-32"), "embedded": load_network(EMBEDDED)}
    return [case(name, networks[name], size, device) for name, size in SIZES.items()]


def load_network(folder: str) -> Any:
    """An open_clip folder."""
    import open_clip

    return open_clip.create_model(f"local-dir:{resolve(folder, 'filter')}").eval().requires_grad_(False)


def case(name: str, network: Any, size: Size, device: torch.device) -> Case:
    """open_clip's `network` beside its image tower in our runtime."""
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

    def of_ours(place: Place) -> Callable[[], Tensor]:
        opened = open_clip(clip, size.batch, place)
        return lambda: similarities(batch, varied, opened, MicroBatch("filter", size.batch))

    def open_ours(machine: Machine) -> Ours:
        judge = of_ours(machine.place)
        for baseline, call in calls.items():
            require_alike(f"filter/{name}, {baseline}", judge()[None], call()[None])
        plain = replace(machine.place, runtime="torch", precision="fp32", compiled=False)
        return Ours(
            work={f"filter/{name}": Work(call=judge, amount=size.images, runtime=machine.place.runtime)},
            flops=flops(of_ours(plain)) / size.images,
            dtype=machine.place.precision,
            shape=f"{size.sources} x {size.variations}, batch {size.batch}",
        )

    work = {baseline: Work(call=call, amount=size.images) for baseline, call in calls.items()}
    return Case(published=work, open=open_ours, unit="img/s")


def preprocess_of(network: Any) -> Any:
    """The transform that open_clip gives beside a model, from PIL images."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)


def clip_of(network: Any, device: torch.device) -> ClipModel:
    """A copy of the network as `load_clip` gives it, with no runtime yet and no tokenizer."""
    settings = network.visual.preprocess_cfg
    size = settings["size"]
    own = copy.deepcopy(network).to(device)

    def closed(_: object) -> Tensor:
        raise AssertionError("open it in a runtime first")

    return ClipModel(
        network=own,
        image_tower=closed,
        tokenizer=closed,
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        device=device,
    )
