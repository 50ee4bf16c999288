"""The shard format: writing, reading, manifest, errors."""
