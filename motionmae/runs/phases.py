"""The phases of a training step."""

from enum import Enum


class Phase(str, Enum):
    """What a rank does."""

    DATA_WAIT = "data_wait"
    """It waits for a micro-batch."""
    FORWARD = "forward"
    """Copy to the device and forward pass."""
    BACKWARD = "backward"
    """Backward pass with the reduction of gradients: here ranks wait for each other."""
    OPTIMIZER = "optimizer"
    """The update."""
    CHECKPOINT = "checkpoint"
    """Training is held up by a save."""
    OTHER = "other"
    """Schedule, agreement on signals, metrics."""
