"""The order of an epoch."""

ORDER_VERSION = 1
"""Changes when the same seed would give another order."""
