"""What the trainer calls at its events: loggers, progress line, reconstructions, garbage collection."""
