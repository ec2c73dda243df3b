"""Benchmarks. Every figure comes with a baseline that was measured in the same process."""
