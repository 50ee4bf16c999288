"""Measurements of speed and memory, one script each."""
