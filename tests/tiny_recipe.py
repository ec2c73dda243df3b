"""A complete recipe that runs in seconds: tiny random networks, three classes of 16x16 images."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from engine.models.networks import wrn_16_1
from tests.tiny_priors import CLASS_NAMES, IMAGE_SIZE, write_clip, write_prior


def write_recipe(folder: Path, **sections: dict[str, Any]) -> Path:
    """Write the recipe and the files it names; `sections` override the tiny settings."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(wrn_16_1(3, 1).state_dict(), folder / "teacher.safetensors")
    inputs = {"num_classes": 3, "in_channels": 1, "image_size": IMAGE_SIZE, "mean": [0.2], "std": [0.3]}
    recipe: dict[str, Any] = {
        "name": "tiny",
        "class_names": list(CLASS_NAMES),
        "compute": {"device": "cpu", "precision": "fp32", "runtime": "torch", "threads": 1},
        "teacher": {"name": "engine:wrn_16_1", "weights": str(folder / "teacher.safetensors"), **inputs},
        "student": {"name": "engine:wrn_16_1", **inputs},
        "schedule": {"init_batches": 2, "rounds": 2, "batches_per_round": 1, "kd_steps": 3},
        "synthesize": {
            "batch_size": 6,
            "steps": 2,
            "latent_dim": 8,
            "start": "meta",
            "warmup_steps": 1,
            "adversary": "selfsup",
        },
        "augment": {
            "method": "variation",
            "prior": str(write_prior(folder / "prior")),
            "variations": 3,
            "steps": 2,
            "guidance_scale": 2.0,
            "class_condition": "text",
            "micro_batch": 8,
        },
        "filter": {
            "model": f"local-dir:{write_clip(folder / 'clip')}",
            "quantile": 0.3,
            "class_gate": False,
            "micro_batch": 16,
        },
        "distill": {"batch_size": 8, "lr": 0.02, "w_feature": 1.0},
        "evaluate": {"data": None},
    }
    for name, section in sections.items():
        recipe[name] = {**recipe[name], **section}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    return path
