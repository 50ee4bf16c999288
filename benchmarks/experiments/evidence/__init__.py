"""A small experiment that shows what pre-training is worth; ``python benchmarks/experiments/evidence --help`` says how."""
