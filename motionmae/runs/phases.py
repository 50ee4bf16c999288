"""Phases of a training step."""

from enum import StrEnum


class Phase(StrEnum):
    """Phase of a training step on one rank."""

    DATA_WAIT = "data_wait"
    """Waiting for a micro-batch."""
    FORWARD = "forward"
    """Copy to the device and forward pass."""
    BACKWARD = "backward"
    """Backward pass and gradient reduction, in which ranks wait for each other."""
    OPTIMIZER = "optimizer"
    """Parameter update."""
    CHECKPOINT = "checkpoint"
    """The part of a save that blocks training."""
    OTHER = "other"
    """Schedule, signal checks and metrics."""
