"""CLIP's image tower open in a runtime."""

from dataclasses import replace

from engine.config.compute import Runtime
from engine.models.priors import ClipModel
from engine.runtime.opening import open_runtime
from engine.runtime.place import Place
from engine.runtime.sizes import batches
from export.networks.clip import open_clip_spec
from export.spec import NetworkSpec


def clip_spec(clip: ClipModel, *, rows: int, runtime: Runtime) -> NetworkSpec:
    """The image tower, for batches of up to `rows`."""
    return open_clip_spec(
        clip.network.visual, mean=clip.mean, std=clip.std, size=clip.size, batches=batches(runtime, rows)
    )


def open_clip(clip: ClipModel, rows: int, place: Place) -> ClipModel:
    """`clip` with its image tower open. Raises ExportError as `open_runtime` does."""
    tower = open_runtime(clip_spec(clip, rows=rows, runtime=place.runtime), place)
    return replace(clip, image_tower=lambda pixels: tower(images=pixels)["embeddings"])
