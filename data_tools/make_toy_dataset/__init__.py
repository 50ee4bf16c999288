"""Render videos whose classes differ in motion only; see ``python data_tools/make_toy_dataset --help``."""
