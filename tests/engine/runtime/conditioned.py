"""A small network with two outputs and a dynamic resolution, to open in every runtime."""

import torch
from torch import Tensor, nn

from engine.runtime import artifacts
from engine.runtime.base import Executable
from engine.runtime.open import open_graph
from export.spec import Axis, Input, NetworkSpec
from export.store import Store
from tests.runtime_options import torch_options

CHUNK = 4
BATCH = Axis(name="batch", min=1, opt=CHUNK, max=64)
SIDES = [Axis(name=name, min=8, opt=16, max=32) for name in ("height", "width")]


class Conditioned(nn.Module):
    """Two outputs, a normalization, and an input without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, images: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.norm(self.conv(images)) + shift[:, :, None, None])
        return hidden, self.head(hidden.mean((2, 3)))


def conditioned_spec() -> NetworkSpec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Conditioned().eval().requires_grad_(False)
    inputs = (Input(name="images", shape=(BATCH, 3, *SIDES)), Input(name="shift", shape=(1, 8)))
    return NetworkSpec(name="conditioned", module=module, inputs=inputs, outputs=("hidden", "logits"))


def opened(spec: NetworkSpec, store: Store, runtime: str, precision: str) -> Executable:
    """Open the graph of `spec`, built in `store`, in a runtime on the CPU."""
    options = torch_options(runtime=runtime, precision=precision, store=store)
    return open_graph(spec, artifacts.graph(spec, options), options)
