"""Several folders of shards as one stream of samples, with stated shares."""
