"""Remote shards: download from a URL, cache on the node's disk, and prefetch."""
