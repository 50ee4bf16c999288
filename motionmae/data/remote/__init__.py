"""Shards behind a URL: download, cache on the node's disk, and prefetch."""
