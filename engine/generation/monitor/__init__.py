"""Monitoring of a generation: the console, a status file in the bank, Prometheus, TensorBoard and W&B."""
