"""Rendered videos whose classes differ in motion only; ``python data_tools/make_toy_dataset --help`` says how."""
