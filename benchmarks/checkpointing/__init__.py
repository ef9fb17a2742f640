"""The parts of benchmarks.checkpoints."""
