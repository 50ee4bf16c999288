"""Shards: their format on disk, their manifest, and the reader."""
