"""Writing and reading checkpoints of a training, and weights from every source."""
