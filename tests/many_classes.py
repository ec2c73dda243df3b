"""A recipe with more classes than images per batch: a tiny random teacher, no priors."""

from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from engine.models.networks import wrn_16_1


def write_many_classes(folder: Path, *, classes: int, batch_size: int) -> Path:
    """Write the recipe and its teacher; return the YAML file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(wrn_16_1(classes, 1).state_dict(), folder / "teacher.safetensors")
    inputs = {"num_classes": classes, "in_channels": 1, "image_size": 8, "mean": [0.2], "std": [0.3]}
    recipe = {
        "class_names": [f"class {number}" for number in range(classes)],
        "compute": {"device": "cpu", "precision": "fp32", "runtime": "torch", "threads": 1},
        "teacher": {"name": "engine:wrn_16_1", "weights": str(folder / "teacher.safetensors"), **inputs},
        "student": {"name": "engine:wrn_16_1", **inputs},
        "synthesize": {"batch_size": batch_size, "steps": 1, "latent_dim": 8},
        "augment": {"method": "none"},
        "filter": {"method": "none"},
        "distill": {"batch_size": 8},
        "evaluate": {"data": None},
    }
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
