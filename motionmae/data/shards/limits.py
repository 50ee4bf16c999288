"""Limits of the numbers in shards, far beyond the values that ``make_shards`` writes for the usual data sets."""

MAX_SAMPLES = 100_000
"""Maximum number of samples per shard."""

MAX_SIDE = 16384
"""Maximum of height and width in pixels."""
