"""Evaluation of trained models: multi-view test, k-nearest neighbours, DAVIS, reconstructions, features, export."""

ADAPTERS = ("duplicate", "sliding", "pairs")
"""Ways to encode a single frame (:mod:`motionmae.evaluation.davis.frame_features`). Importing them needs no torch."""
