"""A small experiment that shows what pre-training is worth; ``python benchmarks/evidence --help`` says how."""
