"""A small experiment that measures the value of pre-training: `python -m benchmarks.experiments.evidence --help`."""
