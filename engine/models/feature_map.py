"""Find the last feature map before global pooling, and the layout of a map, by running a network."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from engine.models.classifier import Classifier
from engine.models.features import FeatureLayout
from engine.seeding import generator
from kernels.fuse import is_scripted

Size = tuple[int, int]
Shape = tuple[int, ...]

BATCH = 2
MAX_TRIES = 8
"""How many maps to try, from the last one back, to find one that the logits depend on."""
MAX_PREFIX = 17
"""Maximum number of tokens before the patches: a class token and 16 registers."""
_POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d)
"""Layers that return their input in eval mode; another layer's name says more about the map."""


class FeatureMap(NamedTuple):
    """A map that a submodule returns: the submodule's path, the map's layout and channels."""

    path: str
    layout: FeatureLayout
    channels: int


def find_feature_map(classifier: Classifier, image_size: Size) -> FeatureMap | None:
    """Return the last map before global pooling in `classifier`, in eval mode, for `image_size`.

    A map is a tensor with more than one position that one submodule returns, with sides in proportion to the
    image's. Maps inside a pooling layer or a head, and maps of logits, do not count. The last one that the
    logits depend on is taken, or the last one if they depend on none, as with a head of zeros. Of all
    submodules that return the same map, the outermost names it. Returns None if there is no map.
    """
    trace = _Trace(classifier, image_size)
    found = list(islice(trace.maps(), MAX_TRIES))
    if not found:
        return None
    call, layout = next((pair for pair in found if trace.decides(pair[0])), found[0])
    return FeatureMap(call.path, layout, _channels(call.shape, layout))


def maps_by_size(classifier: Classifier, image_size: Size) -> list[FeatureMap]:
    """Return the last [B, C, h, w] map of each size below the image's, from the image on."""
    found: dict[Size, FeatureMap] = {}
    for call, layout in _Trace(classifier, image_size).maps():
        if layout.order == "nchw" and layout.grid not in found:
            found[layout.grid] = FeatureMap(call.path, layout, _channels(call.shape, layout))
    return list(reversed(found.values()))


def layout_of(classifier: Classifier, path: str, image_size: Size) -> FeatureLayout | None:
    """Return the layout of what the submodule at `path` returns for `image_size`, or None if it is no map."""
    trace = _Trace(classifier, image_size)
    calls = [call for call in trace.calls if call.path == path]
    return trace.layout(calls[-1].shape, calls[-1].end) if calls else None


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A submodule's call that returned a tensor for the whole batch."""

    path: str
    module: nn.Module
    nth: int
    """Which of the module's calls this is."""
    given: Shape | None
    """Shape of the first argument, if it is a tensor."""
    shape: Shape
    tensor: int
    """Equal for two calls that return the same tensor."""
    start: int
    """Events before the call."""
    end: int
    """Events before its return."""


class _Trace:
    """The calls of a classifier's submodules on noise images, in the order in which they end.

    The events are the starts and ends of calls. `widths` are the lengths of vectors, one per image, that go
    in or out, and `channels` those that typed layers compute, each with the event at which it was seen.
    """

    def __init__(self, classifier: Classifier, image_size: Size) -> None:
        self.classifier, self.image_size = classifier, image_size
        self.calls: list[_Call] = []
        self.widths: list[tuple[int, int]] = []
        self.channels: list[tuple[int, int, str | None]] = []
        self._events = 0
        self._open: list[tuple[nn.Module, int]] = []
        self._tensors: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        images = torch.rand(BATCH, 3, *image_size, generator=generator(0, "probe"))
        self.images = images.to(classifier.mean.device, memory_format=classifier.memory_format)
        with self._watching():
            self.logits = self._logits()
        self.lengths = {call.shape[1] for call in self.calls if len(call.shape) == 3}
        maps = (call for call in self.calls if len(call.shape) == 4)
        layouts = (self._map_layout(call.shape, call.end) for call in maps)
        self.grids = list(dict.fromkeys(layout.grid for layout in layouts if layout is not None))

    def layout(self, shape: Shape, event: int) -> FeatureLayout | None:
        """Return how a tensor of this shape, seen at `event`, lays out a map, or None if it is no map."""
        if len(shape) == 4:
            return self._map_layout(shape, event)
        return self._token_layout(shape, event) if len(shape) == 3 else None

    def maps(self) -> Iterator[tuple[_Call, FeatureLayout]]:
        """Yield the calls that return a map of several positions outside pooling and heads, last first."""
        seen: set[int] = set()
        for call in reversed(self._last_calls()):
            layout = self.layout(call.shape, call.end)
            if call.tensor in seen or layout is None or _positions(layout.grid) == 1:
                continue
            if not isinstance(call.module, _POOLS) and not self._is_of_head(call, layout):
                seen.add(call.tensor)
                yield self._outermost(call), layout

    def _is_of_head(self, call: _Call, layout: FeatureLayout) -> bool:
        """Return whether a map holds logits, or a submodule around it makes vectors of a map this large."""
        is_last = all(when < call.end for when, _, _ in self.channels)
        if is_last and _channels(call.shape, layout) == self.classifier.num_classes:
            return True
        for other in self.calls:
            if call.path.startswith(f"{other.path}.") and _is_vector(other.shape) and other.given is not None:
                given = self.layout(other.given, other.start)
                if given is not None and given.grid == layout.grid:
                    return True
        return False

    def decides(self, call: _Call) -> bool:
        """Return whether the logits depend on what `call` returns."""
        seen = 0

        def disturbed(_module: nn.Module, _inputs: object, output: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen - 1 != call.nth:
                return output
            noise = torch.randn(output.shape, generator=generator(0, "probe", 1)).to(output)
            return output + noise * (output.std() + 1e-3)

        handle = call.module.register_forward_hook(disturbed)
        try:
            return not torch.equal(self._logits(), self.logits)
        finally:
            handle.remove()

    def _outermost(self, call: _Call) -> _Call:
        """Return the outermost call that returns the same tensor, preferably of a layer that computes it."""
        same = [other for other in self._last_calls() if other.tensor == call.tensor]
        working = [other for other in same if not isinstance(other.module, _PASSING)]
        return min(working or same, key=lambda other: (other.path.count("."), other.end))

    def _last_calls(self) -> list[_Call]:
        """Return the last call of each submodule, whose result is the one that a hook keeps."""
        last = {call.path: call for call in self.calls}
        return [call for call in self.calls if call is last[call.path]]

    @torch.no_grad()
    def _logits(self) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            output: Tensor = self.classifier(self.images)
            return output

    @contextmanager
    def _watching(self) -> Iterator[None]:
        handles = []
        for path, module in self.classifier.named_modules():
            if path and not is_scripted(module):
                handles.append(module.register_forward_pre_hook(self._start))
                handles.append(module.register_forward_hook(self._ending(path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._open.append((module, self._events))
        self._note_width(inputs[0] if inputs else None)
        self._events += 1

    def _ending(self, path: str) -> Any:
        count = 0

        def end(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            nonlocal count
            start = self._open.pop()[1]
            self._note_width(output)
            self._note_channels(module)
            self._events += 1
            count += 1
            if isinstance(output, Tensor) and output.ndim > 1 and len(output) == BATCH:
                given = inputs[0] if inputs else None
                self.calls.append(
                    _Call(
                        path=path,
                        module=module,
                        nth=count - 1,
                        given=tuple(given.shape) if isinstance(given, Tensor) else None,
                        shape=tuple(output.shape),
                        tensor=self._number(output),
                        start=start,
                        end=self._events,
                    )
                )

        return end

    def _number(self, tensor: Tensor) -> int:
        """Return a number for the tensor as it is now: others, and later values of it, get other numbers."""
        known = self._tensors.get(id(tensor))
        if known is None or known[0]() is not tensor or known[1] != tensor._version:
            known = self._tensors[id(tensor)] = weakref.ref(tensor), tensor._version, self._events
        return known[2]

    def _note_width(self, value: object) -> None:
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == BATCH and _is_vector(value.shape):
            self.widths.append((self._events, max(value.shape[1:])))

    def _note_channels(self, module: nn.Module) -> None:
        if isinstance(module, _ConvNd):
            self.channels.append((self._events, module.out_channels, "nchw"))
        elif isinstance(module, _BatchNorm):
            self.channels.append((self._events, module.num_features, "nchw"))
        elif isinstance(module, nn.Linear):
            self.channels.append((self._events, module.out_features, "nhwc"))
        elif isinstance(module, nn.LayerNorm):
            self.channels.append((self._events, module.normalized_shape[-1], None))

    def _known_channels(self, event: int) -> list[int]:
        """Return what the channels of a map may be: the width of its average, and the last layer's output."""
        after = [width for when, width in self.widths if when >= event]
        before = [width for when, width, _ in self.channels if when < event]
        return [*after[:1], *before[-1:]]

    def _map_layout(self, shape: Shape, event: int) -> FeatureLayout | None:
        if shape[2] == shape[3] and shape[3] in self.lengths:
            return None  # attention of each token to each
        nchw = FeatureLayout("nchw", (shape[2], shape[3]))
        nhwc = FeatureLayout("nhwc", (shape[1], shape[2]))
        found = [layout for layout in (nchw, nhwc) if _is_in_proportion(layout.grid, self.image_size)]
        if len(found) < 2:
            return found[0] if found else None
        for channels in self._known_channels(event):
            fitting = [layout for layout in found if _channels(shape, layout) == channels]
            if len(fitting) == 1:
                return fitting[0]
        orders = [order for when, _, order in self.channels if when < event and order is not None]
        return nhwc if orders[-1:] == ["nhwc"] else nchw

    def _token_layout(self, shape: Shape, event: int) -> FeatureLayout | None:
        if shape[2] not in self._known_channels(event):
            return None
        count = shape[1]
        for prefix in range(MAX_PREFIX + 1):
            for grid in self.grids:
                if _positions(grid) == count - prefix:
                    return FeatureLayout("tokens", grid, prefix)
        for prefix in (0, 1):
            for grid in self._halved():
                if _positions(grid) == count - prefix:
                    return FeatureLayout("tokens", grid, prefix)
        return None if self.grids else self._guessed(count)

    def _halved(self) -> Iterator[Size]:
        """Yield the sizes that tokens have after their grid is halved several times."""
        for height, width in self.grids:
            while height * width > 1:
                height, width = -(-height // 2), -(-width // 2)
                yield height, width

    def _guessed(self, count: int) -> FeatureLayout | None:
        """Return a layout of `count` tokens by the proportions of the image alone, if a grid has these."""
        image_height, image_width = self.image_size
        for prefix in (0, 1, 2, 5):
            height = round((max(count - prefix, 0) * image_height / image_width) ** 0.5)
            if height and (count - prefix) % height == 0:
                grid = height, (count - prefix) // height
                if _is_in_proportion(grid, self.image_size):
                    return FeatureLayout("tokens", grid, prefix)
        return None


def _is_vector(shape: Shape) -> bool:
    """Return whether [B, ...] holds one vector per image, of any number of dimensions."""
    return sum(side > 1 for side in shape[1:]) <= 1


def _positions(grid: Size) -> int:
    return grid[0] * grid[1]


def _channels(shape: Shape, layout: FeatureLayout) -> int:
    return shape[1] if layout.order == "nchw" else shape[-1]


def _is_in_proportion(grid: Size, image_size: Size) -> bool:
    """Return whether one stride leads from the image to the grid, up to a row and a column of padding."""
    if min(grid) < 1 or grid[0] > image_size[0] or grid[1] > image_size[1]:
        return False
    sides = list(zip(grid, image_size, strict=True))
    least = max(whole / (side + 1) for side, whole in sides)
    most = min(whole / (side - 1) if side > 1 else float("inf") for side, whole in sides)
    return least < most
