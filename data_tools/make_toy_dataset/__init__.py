"""Rendered videos whose classes differ in motion only; `motionmae shards toy --help` explains how."""
