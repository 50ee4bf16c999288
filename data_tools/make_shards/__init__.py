"""Videos -> shards; `motionmae shards make --help` explains how."""
