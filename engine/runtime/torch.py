"""The torch runtime: a module under autocast, optionally compiled, or a fused copy of a classifier.

Also captures CUDA graphs while other threads use the GPU.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from engine.models.classifier import Classifier
from engine.models.features import submodule
from engine.runtime.base import refusals
from engine.runtime.batching import join, pieces, rows, with_fixed_batch
from engine.runtime.micro_batch import is_out_of_memory
from export.float32 import exact_float32
from export.spec import DTYPES, NetworkSpec, Precision
from kernels.fuse import fuse_frozen, sharing_tensors

TRAINING_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
"""dtype of the matrix products in training, by the accelerator's mixed precision."""
EAGER = "use --compute.compile false"
_ONE_CAPTURE_AT_A_TIME = threading.Lock()


class TorchExecutable:
    """Run `spec.module` itself, which must be on `device`.

    In fp32, nothing is rounded to TF32. With `compiled`, inductor compiles the module for the tuned batch
    size, on a GPU into a CUDA graph, and smaller batches are padded to that size. A larger batch compiles
    again, as does one that fits in memory only without padding; later batches are padded to the new size.
    """

    def __init__(
        self, spec: NetworkSpec, precision: Precision, device: torch.device, *, compiled: bool = False
    ) -> None:
        self._spec, self._device = spec, device
        self._dtype = DTYPES[precision]
        self._forward: Callable[..., tuple[Tensor, ...]] = spec.module
        self._size = spec.axes()["batch"].opt if compiled else None
        self._has_run = not compiled
        self._copies = compiled and device.type == "cuda"  # the next replay would overwrite the outputs
        if compiled:
            mode = "reduce-overhead" if device.type == "cuda" else "default"
            self._forward = torch.compile(spec.module, mode=mode, dynamic=False)

    @property
    def description(self) -> str:
        return f"torch {torch.__version__} on {self._device.type}"

    @torch.no_grad()
    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        if self._size is None:
            return self._run(inputs)
        count = rows(self._spec, inputs)
        self._size = max(self._size, count)
        try:
            return self._padded(inputs, count)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            has_padding, self._size = self._size > count, 0
            if not has_padding:
                raise
        clear_device_cache(garbage_collection=True)
        self._size = count
        return self._padded(inputs, count)

    def _padded(self, inputs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        assert self._size is not None
        batches = pieces(with_fixed_batch(self._spec, self._size), inputs)
        return join(self._spec, [self._run(batch) for batch in batches], count)

    def _run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        is_float32 = self._dtype == torch.float32
        exact = exact_float32() if is_float32 else nullcontext()
        refused = nullcontext() if self._has_run else refusals(self._spec.name, "torch.compile", EAGER)
        with torch.autocast(self._device.type, self._dtype, enabled=not is_float32), exact, refused:
            outputs = self._forward(*(inputs[given.name] for given in self._spec.inputs))
        self._has_run = True
        wide = [output.float() for output in outputs]
        return self._spec.named([output.clone() for output in wide] if self._copies else wide)


class FusedClassifier:
    """Run a fused copy (`kernels.fuse`) of a classifier in eval mode, with its weights at construction.

    Returns the logits as "logits" and the output of each submodule in `feature_paths` by its path, the
    feature map as [B, C, h, w], in the dtype of the computation, which may be bf16. Gradients flow to the
    images, unless the caller disables them, and never to the weights. If the forward pass cannot be traced, a
    copy of the modules runs instead; it shares the classifier's weights, which must not change from then on.
    Either copy may run while another thread runs the classifier.

    Raises UserError for a path that does not exist.
    """

    def __init__(
        self,
        classifier: Classifier,
        feature_paths: Sequence[str],
        accelerator: Accelerator,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Fuse the classifier; `dtype`, of the matrix products, is by default the one of training."""
        assert not classifier.training
        for path in feature_paths:
            submodule(classifier, path)
        self._as_map = classifier.as_map
        self._paths, self._device = tuple(feature_paths), accelerator.device
        self._dtype = dtype or TRAINING_DTYPES[accelerator.mixed_precision]
        self._fused = fuse_frozen(classifier, feature_paths, self._dtype, classifier.memory_format)
        self._unfused = sharing_tensors(classifier) if self._fused is None else None

    @property
    def description(self) -> str:
        return f"torch {torch.__version__} on {self._device.type}, fused"

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        logits, features = self._forward(inputs["images"])
        return {"logits": logits, **dict(zip(self._paths, features, strict=True))}

    def _forward(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        is_float32 = self._dtype == torch.float32
        with torch.autocast(self._device.type, self._dtype, enabled=not is_float32):
            if self._unfused is not None:
                return self._unfused.with_features(images, self._paths)
            assert self._fused is not None
            logits, features = self._fused(images)
            return logits, [self._as_map(*pair) for pair in zip(self._paths, features, strict=True)]


@contextmanager
def capture_cuda_graph(
    graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream | None = None
) -> Iterator[None]:
    """Capture in `graph` what the calling thread launches inside the block, instead of running it.

    Only one capture may run at a time: starting one synchronizes the device, which invalidates any capture
    in progress. Other threads may launch and allocate meanwhile. If the capture fails, the caller's stream
    is restored, and the error raised inside the block propagates, not torch's error about the capture.
    """
    # if the capture fails, torch leaves its capture stream current
    with _ONE_CAPTURE_AT_A_TIME, torch.cuda.stream(torch.cuda.current_stream()):
        capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        capture.__enter__()
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):
                capture.__exit__(*sys.exc_info())
            raise
        capture.__exit__(None, None, None)
