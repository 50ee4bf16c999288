"""Held-out videos: views of a test, reading ahead, and checks of held-out shards."""
