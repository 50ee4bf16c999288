"""A small experiment that shows what pre-training is worth; ``python -m benchmarks.experiments.evidence --help`` says how."""
