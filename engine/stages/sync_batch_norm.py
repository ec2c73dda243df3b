"""BatchNorm over a batch that is split evenly over ranks, with the statistics of the whole batch.

Ioffe and Szegedy, arXiv 1502.03167. With N values per channel on all ranks, x̂ = (x - μ) / √(σ² + ε) and g the
gradient with respect to the output, y = γ x̂ + β and

    dL/dx = γ / √(σ² + ε) · (g - (Σ g + x̂ Σ g x̂) / N),

with sums over all ranks. The gradients of γ and β are sums over this rank's part only;
DistributedDataParallel averages them over the ranks, like the gradients of all parameters.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import all_gather, all_reduce, get_world_size
from torch.overrides import TorchFunctionMode


class BatchNormOverRanks(TorchFunctionMode):
    """Replace `F.batch_norm` by `batch_norm_over_ranks` inside the context, without changing any layer."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        called = batch_norm_over_ranks if func is F.batch_norm else func
        return called(*args, **(kwargs or {}))


def batch_norm_over_ranks(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute `F.batch_norm` of floating-point [B, C, ...] with B rows per rank; collective if `training`.

    The running statistics are updated in place with mean and unbiased variance over the rows of all ranks.
    They are the same on all ranks. Raises ValueError if there is one value per channel.
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    count = x.numel() // x.shape[1] * get_world_size()
    if count < 2:
        raise ValueError(f"one value per channel has no variance: the input is {list(x.shape)}")
    y, mean, var = _BatchNorm.apply(x, weight, bias, eps, count)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    return y


class _BatchNorm(torch.autograd.Function):
    """(x, weight, bias, eps, count) -> y, mean and population variance [C] over all ranks, at least fp32."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        del count
        mean, var = _statistics(x)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, weight, _, ctx.eps, ctx.count = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, mean, var)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, scale, mean, var, None, None, False, ctx.eps, [True, True, True]
        )  # with constant statistics: the first term of dL/dx, and this rank's sums
        means = torch.stack([grad_bias, grad_weight]) / ctx.count
        all_reduce(means)
        shift, slope = (value.to(scale.dtype) * scale * torch.rsqrt(var + ctx.eps) for value in means)
        grad_x -= F.batch_norm(x, mean, var, slope, shift, eps=ctx.eps)
        grads = grad_x, grad_weight, grad_bias, None, None
        return tuple(
            grad if wanted else None for grad, wanted in zip(grads, ctx.needs_input_grad, strict=True)
        )


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and population variance of each channel over all ranks, from the ranks' own statistics."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(wide, [0, *range(2, x.ndim)], correction=0)
    mine = torch.stack([mean, var])
    parts = [torch.empty_like(mine) for _ in range(get_world_size())]
    all_gather(parts, mine)
    means, variances = torch.stack(parts).unbind(1)
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)
