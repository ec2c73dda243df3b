"""What every runtime gives: a frozen network that is called with named tensors and returns named tensors."""

from typing import Protocol

from torch import Tensor


class Executable(Protocol):
    """`executable(images=x)["logits"]`: float32 in and out, on the device it was opened on, no gradients.

    The names are those of the network's spec. The first axis of every output is the batch, of any size.
    """

    @property
    def description(self) -> str:
        """Library, version and device: what its numbers depend on besides the graph."""

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]: ...
