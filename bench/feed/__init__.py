"""The feed beside the loaders that research codes use."""
