"""An experiment that measures the value of pre-training; see `python -m benchmarks.experiments.evidence --help`."""
