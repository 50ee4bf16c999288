"""Checks of training on this machine's GPUs, for `motionmae doctor gpu` (docs/operate/gpu.md)."""
