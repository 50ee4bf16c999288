"""Evaluation of trained models: multi-view test, k-nearest neighbours, DAVIS, reconstructions, features, export."""

ADAPTERS = ("duplicate", "sliding", "pairs")
"""Ways to encode a single frame (see motionmae.evaluation.davis.frame_features), importable without torch."""
