"""From shards to batches: the shard format, the order of an epoch, clip decoding, augmentation, the loader."""
