"""Compare the fused ops, called through their registered torch ops and autograd, with what they replace.

On a GPU, every run starts with a cold L2 cache, because the floors are memory bandwidth. Additional rows
compare CUDA graphs: at these sizes, an eager call mostly measures the host.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.calls import replayed
from bench.machine import copy_ceiling, describe
from bench.published.hooks import StatisticsHook
from bench.rows import Row, commit
from bench.timing import Call, milliseconds
from kernels.backend import use_backend
from kernels.bn_stats import bn_stats
from kernels.crop_flip import crop_flip, draw_crops
from kernels.kd_loss import kd_loss

BN_SHAPES = ((200, 32, 32, 32), (200, 64, 16, 16), (200, 128, 8, 8))
BN_SHAPES_GPU = (*BN_SHAPES, (256, 256, 56, 56))
KD_SHAPES = ((128, 10), (256, 100), (256, 1000), (128, 21843))
CROP_SHAPES = ((256, 32, 32, 3), (256, 224, 224, 3))
DTYPES = (torch.float32, torch.bfloat16)
FUSED_PASSES = 5  # forward 1R + 1W, backward 2R + 1W
KD_PASSES = 3  # per logits tensor of the student: 2R (student, teacher) + 1W (gradient)
CROP_BYTES = 5  # per element: 1 read, 4 written


def rows(device: torch.device, *, seconds: float = 1.0, inductor: bool = True) -> Iterator[Row]:
    """Yield a row for each shape, dtype and baseline; each call is measured for `seconds`.

    `inductor=False` skips that baseline, which takes seconds to compile for each shape.
    """
    for shape in BN_SHAPES_GPU if device.type == "cuda" else BN_SHAPES:
        for dtype in DTYPES:
            yield from _bn_stats(shape, dtype, device, seconds, inductor)
    for logits in KD_SHAPES:
        for dtype in DTYPES:
            yield from _kd_loss(logits, dtype, device, seconds)
    for images in CROP_SHAPES:
        yield from _crop_flip(images, device, seconds)


def _bn_stats(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seconds: float, inductor: bool
) -> Iterator[Row]:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(shape[1]).to(device).eval().requires_grad_(False)
    x = torch.randn(shape, device=device).to(dtype)
    grad = torch.randn(shape, device=device).to(dtype)
    contiguous, channels_last = torch.contiguous_format, torch.channels_last
    calls = {
        "ours": _forward_backward(_fused(layer), x, grad, channels_last),
        "ours, NCHW": _forward_backward(_fused(layer), x, grad, contiguous),
        "published hook": _forward_backward(_hooked(layer), x, grad, contiguous),
        "var_mean": _forward_backward(_var_mean(layer), x, grad, contiguous),
        "var_mean, channels_last": _forward_backward(_var_mean(layer), x, grad, channels_last),
    }
    calls |= {
        f"inductor, {name}": _forward_backward(_compiled(_var_mean(layer)), x, grad, memory_format)
        for name, memory_format in (("channels_last", channels_last), ("NCHW", contiguous))
        if inductor and shape in BN_SHAPES and (memory_format == channels_last or device.type == "cpu")
    }
    if device.type == "cuda":
        calls |= {f"{name}, graph": replayed(calls[name]) for name in ("ours", "published hook")}
    ceiling = copy_ceiling(device)
    ms = milliseconds(calls | {"copy": ceiling.call}, device, seconds=seconds, cold=True)
    floor = ceiling.ms(FUSED_PASSES * x.nbytes, ms["copy"])
    baselines = {"published hook": ms["published hook"]}
    for name in ("var_mean", "inductor"):  # in the faster layout of each
        in_layouts = [value for call, value in ms.items() if call.startswith(name)]
        if in_layouts:
            baselines[name] = min(in_layouts)
    for layout, ours in (("channels_last", ms["ours"]), ("NCHW", ms["ours, NCHW"])):
        for name, theirs in baselines.items():
            yield _row(f"bn_stats/{layout}", name, ours, theirs, floor, device, dtype, shape)
    if device.type == "cuda":
        ours, theirs = ms["ours, graph"], ms["published hook, graph"]
        case, name = "bn_stats/channels_last, graph", "published hook, graph"
        yield _row(case, name, ours, theirs, floor, device, dtype, shape)


Layer = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x -> (relu(bn(x)), statistics loss)"""


def _fused(layer: nn.BatchNorm2d) -> Layer:
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    return lambda x: bn_stats(x, layer.weight, layer.bias, mean, var, activation="relu")


def _hooked(layer: nn.BatchNorm2d) -> Layer:
    twin = nn.BatchNorm2d(layer.num_features).to(layer.weight.device).eval().requires_grad_(False)
    hook = StatisticsHook(twin)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(twin(x))
        return y, hook.loss

    return forward


def _var_mean(layer: nn.BatchNorm2d) -> Layer:
    running_mean, running_var = layer.running_mean, layer.running_var
    assert running_mean is not None
    assert running_var is not None

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        loss = torch.norm(var - running_var) + torch.norm(mean - running_mean)
        return F.relu(layer(x)), loss

    return forward


def _compiled(layer: Layer) -> Layer:
    torch._dynamo.reset()
    return torch.compile(layer, dynamic=False)


def _forward_backward(layer: Layer, x: Tensor, grad: Tensor, memory_format: torch.memory_format) -> Call:
    own = x.detach().clone(memory_format=memory_format).requires_grad_()
    grad_y, grad_loss = grad.contiguous(memory_format=memory_format), torch.ones((), device=x.device)

    def call() -> None:
        y, loss = layer(own)
        torch.autograd.grad([y, loss], own, [grad_y, grad_loss.to(loss.dtype)])

    return call


def _kd_loss(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, seconds: float
) -> Iterator[Row]:
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(shape, device=device) for _ in range(2))
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
    labels = torch.randint(shape[1], shape[:1], device=device)

    def fused() -> None:
        torch.autograd.grad(kd_loss(student, teacher, labels, temperature=20.0).total, student)

    def eager() -> None:
        soft = F.kl_div(F.log_softmax(student / 20, 1), F.softmax(teacher / 20, 1), reduction="batchmean")
        torch.autograd.grad(400 * soft + F.cross_entropy(student, labels), student)

    calls: dict[str, Call] = {"ours": fused, "eager": eager}
    if device.type == "cuda":
        calls |= {f"{name}, graph": replayed(call) for name, call in calls.items()}
    ceiling = copy_ceiling(device)
    ms = milliseconds(calls | {"copy": ceiling.call}, device, seconds=seconds, cold=True)
    floor = ceiling.ms(KD_PASSES * student.nbytes, ms["copy"])
    for way in ("", ", graph") if device.type == "cuda" else ("",):
        ours, theirs = ms[f"ours{way}"], ms[f"eager{way}"]
        yield _row(f"kd_loss/both terms{way}", f"eager{way}", ours, theirs, floor, device, dtype, shape)


def _crop_flip(shape: tuple[int, ...], device: torch.device, seconds: float) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    windows = [drawn.to(device) for drawn in draw_crops(shape[0], generator, pad=4)]

    def fused() -> None:
        crop_flip(images, *windows, pad=4)

    def eager() -> None:
        with use_backend("torch"):
            crop_flip(images, *windows, pad=4)

    calls: dict[str, Call] = {"ours": fused, "eager": eager}
    if device.type == "cuda":
        calls |= {f"{name}, graph": replayed(call) for name, call in calls.items()}
    ceiling = copy_ceiling(device)
    ms = milliseconds(calls | {"copy": ceiling.call}, device, seconds=seconds, cold=True)
    floor = ceiling.ms(CROP_BYTES * images.numel(), ms["copy"])
    for way in ("", ", graph") if device.type == "cuda" else ("",):
        ours, theirs = ms[f"ours{way}"], ms[f"eager{way}"]
        yield _row(f"crop_flip{way}", f"eager{way}", ours, theirs, floor, device, images.dtype, shape)


def _row(
    case: str,
    baseline: str,
    ours: float,
    theirs: float,
    floor: float,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
) -> Row:
    return Row(
        case=case,
        baseline=baseline,
        ours=ours,
        theirs=theirs,
        unit="ms",
        ratio=theirs / ours,
        floor=floor,
        device=describe(device),
        dtype=str(dtype).removeprefix("torch."),
        shape=str(list(shape)),
        commit=commit(),
    )
