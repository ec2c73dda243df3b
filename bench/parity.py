"""Check that ours computes what the baseline computes, before any speed is reported."""

import torch
from torch import Tensor


class DifferentWorkError(Exception):
    """Ours and a baseline give different results for the same inputs: a bug in the bench or the engine."""


def require_alike(case: str, ours: Tensor, theirs: Tensor, *, least: float = 0.99) -> None:
    """Raise DifferentWorkError if the cosine of any row is below `least`; both are [B, ...].

    The default tolerates bf16. Each side's mean is subtracted first, so a common offset does not raise the
    cosine; scale never does.
    """
    assert ours.shape == theirs.shape, f"{case}: ours has shape {ours.shape}, theirs {theirs.shape}"
    wide = (values.float().cpu().flatten(1) for values in (ours, theirs))
    a, b = (values - values.mean() for values in wide)
    cosine = torch.cosine_similarity(a, b).min().item()
    if not cosine >= least:
        raise DifferentWorkError(f"{case}: cosine {cosine:.4f} to the baseline's result is below {least}")


def require_close(case: str, ours: Tensor, theirs: Tensor, *, most: float = 0.02) -> None:
    """Raise DifferentWorkError if any value differs by more than `most`."""
    assert ours.shape == theirs.shape, f"{case}: ours has shape {ours.shape}, theirs {theirs.shape}"
    difference = (ours.float().cpu() - theirs.float().cpu()).abs().max().item()
    if not difference <= most:
        raise DifferentWorkError(
            f"{case}: differs by {difference:.4f} from the baseline's result, more than {most}"
        )
