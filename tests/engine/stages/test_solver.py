"""Every solver follows a prior's stored noise schedule, or refuses it before any image is made."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from engine.config.augment import SCHEDULERS, AugmentConfig
from engine.errors import UserError, more_precision
from engine.models.noise_schedule import schedule_fault
from engine.stages.solver import begin, build_scheduler, check_solver

STORED: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.42.1",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SPACED_LOGS = {"timestep_type": "continuous", "use_karras_sigmas": True, "prediction_type": "v_prediction"}


@dataclass(frozen=True)
class Stored:
    """What a solver uses of a prior."""

    scheduler_config: dict[str, Any]
    latent_shape: tuple[int, int, int] = field(default=(4, 8, 8))


def _config(**changes: Any) -> AugmentConfig:
    return AugmentConfig(**{"prior": "folder", "steps": 10, **changes})


@pytest.mark.parametrize("solver", SCHEDULERS)
@pytest.mark.parametrize("strength", [1.0, 0.5], ids=["noise", "source"])
def test_the_schedules_of_known_priors_pass(solver: str, strength: float) -> None:
    config = _config(scheduler=solver, strength=strength)
    for change in (
        {},
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False},
        {
            "_class_name": "EulerDiscreteScheduler",
            "timestep_spacing": "trailing",
            "interpolation_type": "linear",
        },
        {"prediction_type": "v_prediction", **ZERO_SNR},
        {"trained_betas": [0.01] * 1000},
        {"use_karras_sigmas": True},
    ):
        stored = STORED | change
        assert schedule_fault(stored) is None
        check_solver(Stored(stored), config)


@pytest.mark.parametrize("solver", ["dpmsolver++", "unipc"])
@pytest.mark.parametrize("strength", [1.0, 0.5], ids=["noise", "source"])
def test_flow_priors_reach_the_clean_latent(solver: str, strength: float) -> None:
    """A perfect network for x = (1 - sigma) clean + sigma noise and velocity noise - clean ends at clean."""
    config = _config(scheduler=solver, strength=strength)
    prior = Stored(STORED | FLOW)
    assert schedule_fault(prior.scheduler_config) is None
    check_solver(prior, config)
    draw = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=draw)
    scheduler = build_scheduler(prior, config)
    timesteps, latents = begin(scheduler, config, noise, None if strength == 1 else clean)
    for timestep in timesteps:
        latents = scheduler.step(noise - clean, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(latents, clean, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "_class_name is 'FlowMatchEulerDiscreteScheduler'",
        ),
        ({"beta_strat": 0.1}, "beta_strat is 0.1, a key that no supported scheduler knows"),
        ({"snr_shift_scale": 3.0}, "snr_shift_scale is 3.0"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"beta_start": None}, "beta_start is None, beta_end 0.012"),
        ({"trained_betas": [0.1]}, "trained_betas is not a list of 1000 numbers"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps is '1000'"),
        ({"prediction_type": "flow_prediction"}, "use_flow_sigmas is False"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ({"variance_type": "learned_range"}, "variance_type is 'learned_range'"),
        ({"timestep_spacing": "wide"}, "timestep_spacing is 'wide'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_schedule_that_no_solver_can_follow_is_named(change: dict[str, Any], message: str) -> None:
    assert message in (schedule_fault(STORED | change) or "")


def test_a_schedule_is_never_a_default() -> None:
    for key in ("beta_schedule", "beta_start", "beta_end"):
        assert key in (schedule_fault({name: value for name, value in STORED.items() if name != key}) or "")


@pytest.mark.parametrize(
    ("solver", "change", "message"),
    [
        ("ddim", FLOW, "prediction_type is flow_prediction.* use dpmsolver[+][+] or unipc"),
        ("euler", {"prediction_type": "sample"}, "prediction_type is sample, which augment.scheduler euler"),
        ("ddim", ZERO_SNR, "rescale_betas_zero_snr is true and prediction_type epsilon"),
        ("ddim", {"clip_sample": True}, "clip_sample is true"),
        ("unipc", {"thresholding": True}, "thresholding is true"),
        ("unipc", SPACED_LOGS, "timestep_type is continuous.* use euler"),
        (
            "euler",
            {"use_karras_sigmas": True, "use_exponential_sigmas": True},
            "use_exponential_sigmas and use_karras_sigmas are both true",
        ),
        ("dpmsolver++", {"steps_offset": 500}, "10 steps .augment.steps. .* leave the noise schedule"),
        ("dpmsolver++", {"num_train_timesteps": 5}, "num_train_timesteps is 5, but augment.steps is 10"),
        ("dpmsolver++", {"final_sigmas_type": "one"}, "cannot use it .*final_sigmas_type"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_the_configured_solver_cannot_do_is_named(
    solver: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(
        UserError, match=rf"^augment.prior: folder/scheduler/scheduler_config.json: .*{message}"
    ):
        check_solver(Stored(STORED | change), _config(scheduler=solver))


def test_beta_sigmas_need_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.stages.solver.find_spec", lambda _: None)
    with pytest.raises(UserError, match="use_beta_sigmas is true, which needs the package scipy"):
        check_solver(Stored(STORED | {"use_beta_sigmas": True}), _config())


def test_a_step_too_many_is_refused() -> None:
    """Trailing spacing of 61 steps in 1000 is rounded to 62. The last is -1, which is the noisiest step."""
    for steps, is_sound in ((60, True), (61, False)):
        prior, config = (
            Stored(STORED | {"timestep_spacing": "trailing"}),
            _config(scheduler="ddim", steps=steps),
        )
        if is_sound:
            check_solver(prior, config)
        else:
            with pytest.raises(UserError, match="the 61 steps .augment.steps."):
                check_solver(prior, config)


def test_more_precision_is_advised_only_if_there_is_one() -> None:
    assert more_precision("fp16", "compute.runtime_precision", otherwise="x") == (
        "use --compute.runtime_precision bf16 or fp32"
    )
    assert more_precision("bf16", "compute.precision", otherwise="x") == "use --compute.precision fp32"
    assert more_precision("fp32", "compute.precision", otherwise="lower x") == "lower x"
    assert more_precision("no", "compute.precision", otherwise="lower x") == "lower x"
