"""Shared by tests and benchmarks: the reference, trajectories, layouts, compilers, training."""
