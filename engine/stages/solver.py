"""The solver of a diffusion prior: diffusers' scheduler with the prior's noise, tried before it is needed."""

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
"""Latents of a trial, and their height and width: a solver works element by element."""


class Noised(Protocol):
    """A prior, open or not."""

    @property
    def scheduler_config(self) -> dict[str, Any]: ...
    @property
    def latent_shape(self) -> tuple[int, int, int]: ...


def build_scheduler(prior: Noised, config: AugmentConfig) -> Any:
    """The configured solver with the noise schedule the prior was trained on, its tables on the CPU.

    A stored configuration that does not mention `clip_sample` gets False: latents are not bound to [-1, 1].
    """
    import diffusers

    name, options = SCHEDULERS[config.scheduler]
    stored = {"clip_sample": False, **prior.scheduler_config}
    return getattr(diffusers, name).from_config(stored, **options)


def check_solver(prior: Noised, config: AugmentConfig) -> None:
    """Takes all steps once, on random latents.

    Raises UserError, naming the file, the key and what to change, if the configured solver cannot follow the
    stored noise schedule or gives values that are not finite.
    """
    stored = prior.scheduler_config
    fault = _solver_fault(stored, config) or _trial_fault(prior, config)
    if fault:
        raise UserError(f"augment.prior: {config.prior}/{FILE}: {fault}")


def begin(
    scheduler: Any, config: AugmentConfig, noise: Tensor, anchors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The timesteps to take, on the CPU, and the latents to start from: noise, or the noised anchors."""
    scheduler.set_timesteps(config.steps)
    first = 0 if anchors is None else config.steps - int(config.steps * config.strength)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]
    if anchors is None:
        return timesteps, noise * scheduler.init_noise_sigma
    return timesteps, scheduler.add_noise(anchors, noise, timesteps[:1].expand(len(noise)))


def _solver_fault(stored: Mapping[str, Any], config: AugmentConfig) -> str | None:
    """A stored key that the solver cannot do, or would ignore although the prior was trained with it."""
    solver, (name, _) = config.scheduler, SCHEDULERS[config.scheduler]
    prediction = stored.get("prediction_type", "epsilon")
    if prediction not in _predictions(solver):
        able = " or ".join(other for other in SCHEDULERS if prediction in _predictions(other))
        return f"prediction_type is {prediction}, which augment.scheduler {solver} cannot do; take {able}"
    if stored.get("timestep_type") == "continuous" and solver != "euler":
        return "timestep_type is continuous, which only augment.scheduler euler can do; take euler"
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
        return f"num_train_timesteps is {trained}, augment.steps {config.steps}; lower augment.steps"
    return None


def _predictions(solver: str) -> tuple[str, ...]:
    able = {"ddim": ("epsilon", "sample", "v_prediction"), "euler": ("epsilon", "v_prediction")}
    return able.get(solver, PREDICTIONS)


def _settings(name: str) -> set[str]:
    """The keys that diffusers' class `name` reads."""
    import diffusers

    return set(inspect.signature(getattr(diffusers, name).__init__).parameters)


def _trial_fault(prior: Noised, config: AugmentConfig) -> str | None:
    try:
        is_sound = _trial(prior, config)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"augment.scheduler {config.scheduler} cannot use it ({reason}); correct it, or take another"
    if is_sound:
        return None
    if prior.scheduler_config.get("rescale_betas_zero_snr") and config.scheduler == "ddim":
        prediction = prior.scheduler_config.get("prediction_type", "epsilon")
        return (
            f"rescale_betas_zero_snr is true and prediction_type {prediction}: ddim's first step divides by "
            "zero; correct the file, or take augment.scheduler dpmsolver++, unipc or euler"
        )
    return (
        f"the {config.steps} steps (augment.steps) of augment.scheduler {config.scheduler} leave the noise "
        "schedule or are not finite; correct the file, or take another solver or number of steps"
    )


@torch.no_grad()
def _trial(prior: Noised, config: AugmentConfig) -> bool:
    """Whether all timesteps lie in the noise schedule and all latents are finite."""
    draw = torch.Generator().manual_seed(0)
    rows, height, width = TRIAL
    shape = (rows, prior.latent_shape[0], height, width)

    def drawn() -> Tensor:
        return torch.randn(shape, generator=draw)

    scheduler = build_scheduler(prior, config)
    timesteps, latents = begin(scheduler, config, drawn(), None if config.strength == 1 else drawn())
    if len(scheduler.timesteps) != config.steps or not _in_range(scheduler):
        return False
    for timestep in timesteps:
        scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(drawn(), timestep, latents, return_dict=False)[0]
        if not latents.isfinite().all():
            return False
    return True


def _in_range(scheduler: Any) -> bool:
    timesteps = scheduler.timesteps.double()
    if scheduler.config.get("timestep_type") == "continuous":  # these are logarithms
        return bool(timesteps.isfinite().all())
    return bool((timesteps >= 0).all() and (timesteps < scheduler.config.num_train_timesteps).all())
