"""Data loading: from shards, a URL or an FFCV file to batches of clips on the device."""
