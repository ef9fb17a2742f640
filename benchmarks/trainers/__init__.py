"""The parts of benchmarks.training and benchmarks.gpu: trainers, and what is measured of them."""
