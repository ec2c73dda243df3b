"""Check that a solver can follow the noise schedule that a prior stores."""

import inspect
from collections.abc import Mapping
from typing import Any

from engine.models.prior_faults import is_number

FILE = "scheduler/scheduler_config.json"
CLASSES = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""diffusers' schedulers that are defined by betas."""
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
SPACINGS = ("leading", "linspace", "trailing")
_HARMLESS = {"tensor_format"}
"""Keys that early versions of diffusers wrote and that have no effect."""


def schedule_fault(config: Mapping[str, Any]) -> str | None:
    """Return the key, its value and the remedy if no solver can follow the configuration, else None."""
    name = config.get("_class_name")
    if name not in CLASSES:
        return f"_class_name is {name!r}, whose noise is not defined by betas; use another prior"
    return (
        _unknown_key(config)
        or _betas_fault(config)
        or _choice_fault(config, "prediction_type", PREDICTIONS)
        or _choice_fault(config, "timestep_spacing", SPACINGS)
        or _flow_fault(config)
        or _variance_fault(config)
    )


def _unknown_key(config: Mapping[str, Any]) -> str | None:
    """Find a key that every scheduler would silently ignore."""
    import diffusers

    known = set().union(
        *(inspect.signature(getattr(diffusers, name).__init__).parameters for name in CLASSES)
    )
    for key, value in config.items():
        if not key.startswith("_") and key not in known | _HARMLESS and value is not None:
            return f"{key} is {value!r}, a key that no supported scheduler knows; correct or remove it"
    return None


def _betas_fault(config: Mapping[str, Any]) -> str | None:
    steps = config.get("num_train_timesteps", 1000)
    if not _is_whole(steps) or steps < 1:
        return (
            f"num_train_timesteps is {steps!r}; set it to the number the prior was trained with, often 1000"
        )
    betas = config.get("trained_betas")
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != steps:
            return (
                f"trained_betas is not a list of {steps} numbers (num_train_timesteps); correct one of them"
            )
        if not all(is_number(beta) and 0 < beta < 1 for beta in betas):
            return "trained_betas has a value that does not lie between 0 and 1; correct it"
        return None
    if "beta_schedule" not in config:
        return "beta_schedule is missing; set it to the one that the prior was trained with"
    if fault := _choice_fault(config, "beta_schedule", BETA_SCHEDULES):
        return fault
    if config["beta_schedule"] == "squaredcos_cap_v2":
        return None
    start, end = config.get("beta_start"), config.get("beta_end")
    if not (is_number(start) and is_number(end) and 0 < start <= end < 1):
        return f"beta_start is {start!r}, beta_end {end!r}; set them so that 0 < beta_start <= beta_end < 1"
    return None


def _choice_fault(config: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str | None:
    value = config.get(key, choices[0])
    if value in choices:
        return None
    return f"{key} is {value!r}, which is not supported; use a prior with one of {', '.join(choices)}"


def _flow_fault(config: Mapping[str, Any]) -> str | None:
    prediction, flows = config.get("prediction_type"), bool(config.get("use_flow_sigmas"))
    if flows != (prediction == "flow_prediction"):
        return (
            f"prediction_type is {prediction!r} and use_flow_sigmas is {flows}; set use_flow_sigmas to true "
            "for flow_prediction and to false otherwise"
        )
    if config.get("use_dynamic_shifting"):
        return "use_dynamic_shifting is true, which is not supported; set it to false and set flow_shift"
    return None


def _variance_fault(config: Mapping[str, Any]) -> str | None:
    value = config.get("variance_type")
    if value in ("learned", "learned_range"):
        return f"variance_type is {value!r}, which is not supported; use a prior with a fixed variance"
    return None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
