"""Render videos whose classes differ in motion only; see `motionmae shards toy --help`."""
