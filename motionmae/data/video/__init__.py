"""Decoding of video files with PyAV."""
