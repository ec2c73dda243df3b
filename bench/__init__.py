"""Measurements: every figure beside a baseline that ran in the same process."""
