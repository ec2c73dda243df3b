"""No speed is quoted for other work: ours must compute what the baseline computes."""

import torch
from torch import Tensor


class DifferentWorkError(Exception):
    """Ours and a baseline give different results for the same inputs; a defect of the bench or the engine."""


def require_alike(case: str, ours: Tensor, theirs: Tensor, *, least: float = 0.99) -> None:
    """Raises DifferentWorkError where a row's cosine is below `least`, coarse enough for bf16; [B, ...] both.

    Each side's mean is taken out before, so that a common offset does not count as likeness, nor does scale.
    """
    assert ours.shape == theirs.shape, f"{case}: ours gives {ours.shape}, theirs {theirs.shape}"
    wide = (values.float().cpu().flatten(1) for values in (ours, theirs))
    a, b = (values - values.mean() for values in wide)
    found = torch.cosine_similarity(a, b).min().item()
    if not found >= least:
        raise DifferentWorkError(f"{case}: cosine {found:.4f} to the baseline's result, {least} wanted")


def require_close(case: str, ours: Tensor, theirs: Tensor, *, most: float = 0.02) -> None:
    """Raises DifferentWorkError where a value differs by more than `most`."""
    assert ours.shape == theirs.shape, f"{case}: ours gives {ours.shape}, theirs {theirs.shape}"
    found = (ours.float().cpu() - theirs.float().cpu()).abs().max().item()
    if not found <= most:
        raise DifferentWorkError(f"{case}: {found:.4f} from the baseline's result, at most {most} wanted")
