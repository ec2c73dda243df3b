"""Build the solver of a diffusion prior, a scheduler of diffusers, and check it before it is needed."""

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.config.augment import SCHEDULERS, AugmentConfig
from engine.errors import UserError
from engine.models.noise_schedule import FILE, PREDICTIONS

SPACED_SIGMAS = ("use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas")
TRIAL = (2, 4, 4)
"""Batch size, height and width of the latents in a trial; small, because solvers work element by element."""


class HasNoiseSchedule(Protocol):
    """A prior, loaded or open in a runtime."""

    @property
    def scheduler_config(self) -> dict[str, Any]: ...
    @property
    def latent_shape(self) -> tuple[int, int, int]: ...


def build_scheduler(prior: HasNoiseSchedule, config: AugmentConfig) -> Any:
    """Return the configured solver with the prior's noise schedule, its tables on the CPU.

    `clip_sample` is False unless it is stored: latents are not bound to [-1, 1].
    """
    import diffusers

    name, options = SCHEDULERS[config.scheduler]
    stored = {"clip_sample": False, **prior.scheduler_config}
    return getattr(diffusers, name).from_config(stored, **options)


def check_solver(prior: HasNoiseSchedule, config: AugmentConfig) -> None:
    """Try the solver on random latents.

    Raises UserError if it cannot follow the stored noise schedule, or returns NaN or Inf; the message names
    the file, the key and what to change.
    """
    stored = prior.scheduler_config
    fault = _solver_fault(stored, config) or _trial_fault(prior, config)
    if fault:
        raise UserError(f"augment.prior: {config.prior}/{FILE}: {fault}")


def begin(
    scheduler: Any, config: AugmentConfig, noise: Tensor, source_latents: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the timesteps, on the CPU, and the initial latents: noise, or the source latents with noise."""
    scheduler.set_timesteps(config.steps)
    first = 0 if source_latents is None else config.steps - int(config.steps * config.strength)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]
    if source_latents is None:
        return timesteps, noise * scheduler.init_noise_sigma
    return timesteps, scheduler.add_noise(source_latents, noise, timesteps[:1].expand(len(noise)))


def _solver_fault(stored: Mapping[str, Any], config: AugmentConfig) -> str | None:
    """Describe a stored key that the solver does not support, or ignores although the prior needs it."""
    solver, (name, _) = config.scheduler, SCHEDULERS[config.scheduler]
    prediction = stored.get("prediction_type", "epsilon")
    if prediction not in _predictions(solver):
        able = " or ".join(other for other in SCHEDULERS if prediction in _predictions(other))
        return (
            f"prediction_type is {prediction}, which augment.scheduler {solver} does not support; use {able}"
        )
    if stored.get("timestep_type") == "continuous" and solver != "euler":
        return f"timestep_type is continuous, which augment.scheduler {solver} does not support; use euler"
    for key in ("clip_sample", "thresholding"):
        if stored.get(key) and key in _settings(name):
            return f"{key} is true, but latents are not bound to [-1, 1]; set it to false"
    spaced = [key for key in SPACED_SIGMAS if stored.get(key) and key in _settings(name)]
    if len(spaced) > 1:
        return f"{' and '.join(spaced)} are both true; set all but one to false"
    if spaced == ["use_beta_sigmas"] and find_spec("scipy") is None:
        return "use_beta_sigmas is true, which needs the package scipy; install it, or set the key to false"
    trained = stored.get("num_train_timesteps", 1000)
    if config.steps > trained:
        return f"num_train_timesteps is {trained}, but augment.steps is {config.steps}; lower augment.steps"
    return None


def _predictions(solver: str) -> tuple[str, ...]:
    able = {"ddim": ("epsilon", "sample", "v_prediction"), "euler": ("epsilon", "v_prediction")}
    return able.get(solver, PREDICTIONS)


def _settings(name: str) -> set[str]:
    """Return the keys that diffusers' class `name` reads."""
    import diffusers

    return set(inspect.signature(getattr(diffusers, name).__init__).parameters)


def _trial_fault(prior: HasNoiseSchedule, config: AugmentConfig) -> str | None:
    """Describe why a trial fails, or return None."""
    try:
        is_sound = _trial(prior, config)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"augment.scheduler {config.scheduler} cannot use it ({reason}); correct it, or use another"
    if is_sound:
        return None
    if prior.scheduler_config.get("rescale_betas_zero_snr") and config.scheduler == "ddim":
        prediction = prior.scheduler_config.get("prediction_type", "epsilon")
        return (
            f"rescale_betas_zero_snr is true and prediction_type {prediction}: ddim's first step divides by "
            "zero; correct the file, or use augment.scheduler dpmsolver++, unipc or euler"
        )
    return (
        f"the {config.steps} steps (augment.steps) of augment.scheduler {config.scheduler} leave the noise "
        "schedule or return NaN or Inf; correct the file, or use another solver or number of steps"
    )


@torch.no_grad()
def _trial(prior: HasNoiseSchedule, config: AugmentConfig) -> bool:
    """Take all steps on random latents; return whether timesteps are in the schedule and latents finite."""
    draw = torch.Generator().manual_seed(0)
    rows, height, width = TRIAL
    shape = (rows, prior.latent_shape[0], height, width)

    def random_latents() -> Tensor:
        return torch.randn(shape, generator=draw)

    scheduler = build_scheduler(prior, config)
    timesteps, latents = begin(
        scheduler, config, random_latents(), None if config.strength == 1 else random_latents()
    )
    if len(scheduler.timesteps) != config.steps or not _in_range(scheduler):
        return False
    for timestep in timesteps:
        scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(random_latents(), timestep, latents, return_dict=False)[0]
        if not latents.isfinite().all():
            return False
    return True


def _in_range(scheduler: Any) -> bool:
    timesteps = scheduler.timesteps.double()
    if scheduler.config.get("timestep_type") == "continuous":  # logarithms of sigmas
        return bool(timesteps.isfinite().all())
    return bool((timesteps >= 0).all() and (timesteps < scheduler.config.num_train_timesteps).all())
