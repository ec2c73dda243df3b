"""Configurations of classifiers with nothing left to read: ten classes of 32x32 RGB images."""

from typing import Any

from engine.config.classifier import ClassifierConfig


def classifier_config(**fields: Any) -> ClassifierConfig:
    """Return a resolved configuration; `fields` override its values."""
    resolved = {"num_classes": 10, "in_channels": 3, "image_size": 32, "mean": (0.5,), "std": (0.5,)}
    return ClassifierConfig(**{**resolved, **fields})
