"""Make shards from videos; see `motionmae shards make --help`."""
