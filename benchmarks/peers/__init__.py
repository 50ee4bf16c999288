"""Programs that the benchmarks compare with, and the slow network that they share."""
