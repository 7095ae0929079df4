"""What tests and benchmarks share: the reference, trajectories, layouts, compilers, training."""
