"""DAVIS-2017: video object segmentation by label propagation, and its evaluation."""
