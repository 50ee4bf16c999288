"""Shards behind a URL: cache, download, prefetch."""
