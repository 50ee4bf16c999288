"""A small experiment that measures the value of pre-training; see ``python benchmarks/experiments/evidence --help``."""
