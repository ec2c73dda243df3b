"""What a recipe may say: one dataclass a file, and its checks. Nothing here imports torch."""
