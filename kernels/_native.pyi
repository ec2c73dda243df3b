def cpu_features() -> list[str]:
    """Return the instruction sets among `avx2`, `avx512f`, `avx512_bf16` and `amx_bf16` that the processor
    has and whose registers the operating system saves; empty on anything but x86-64."""

def retain_freed_memory() -> bool:
    """Make malloc keep large freed blocks for the rest of the process, which saves new large tensors their
    page faults. Return False and change nothing if the C library is not glibc."""

def last_level_cache_bytes() -> int:
    """Return the size of the cache that all cores share; results of more than half of it bypass it."""

def set_last_level_cache_bytes(bytes: int) -> None:
    """Set what `last_level_cache_bytes` returns, for the whole process."""

def isas() -> list[str]:
    """Return the instruction sets that this build has and this processor runs, widest first; the last is
    `baseline`."""

def isa() -> str:
    """Return the instruction set in use."""

def select_isa(name: str) -> None:
    """Select one of `isas()` for the whole process. Raises ValueError for any other name."""

# Below, tensors are addresses, and 0 means none; the headers in csrc/ document the fields and functions.

class BnStats:
    def __init__(
        self,
        *,
        dtype: int,
        channels_last: bool,
        batch: int,
        channels: int,
        spatial: int,
        weight: int,
        bias: int,
        running_mean: int,
        running_var: int,
        eps: float,
        activation: int,
        negative_slope: float,
        threads: int,
    ) -> None: ...

def bn_stats_forward(op: BnStats, x: int, y: int, loss: int, coefficients: int) -> None: ...
def bn_stats_backward(
    op: BnStats,
    grad_y: int,
    grad_loss: float,
    x: int,
    coefficients: int,
    grad_x: int,
    grad_weight: int,
    grad_bias: int,
) -> None: ...

class CropFlip:
    def __init__(
        self,
        *,
        batch: int,
        height: int,
        width: int,
        pad: int,
        top: int,
        left: int,
        flip: int,
        threads: int,
    ) -> None: ...

def crop_flip_forward(op: CropFlip, images: int, out: int) -> None: ...

class KdLoss:
    def __init__(
        self,
        *,
        student_dtype: int,
        teacher_dtype: int,
        rows: int,
        classes: int,
        student_stride: int,
        teacher_stride: int,
        labels: int,
        temperature: float,
        w_kl: float,
        w_ce: float,
        label_smoothing: float,
        ignore_index: int,
        standardize: bool,
        threads: int,
    ) -> None: ...

def kd_loss_forward(
    op: KdLoss,
    student: int,
    teacher: int,
    total: int,
    kl: int,
    ce: int,
    grad_student: int,
    grad_teacher: int,
) -> int:
    """Return -1, or the first row whose label is neither a class nor `ignore_index`."""
