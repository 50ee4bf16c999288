"""Callbacks of the trainer: loggers, progress line, reconstructions, garbage collection."""
