"""Render toy videos whose classes differ only in motion; see `motionmae shards toy --help`."""
