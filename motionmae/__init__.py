"""MotionMAE: masked autoencoding of appearance and motion in video, and the distributed system around it."""

__version__ = "0.1.0"
