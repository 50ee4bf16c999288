"""Baselines on real videos, and frozen encoders beside them: `python -m benchmarks.experiments.real_video --help`."""
