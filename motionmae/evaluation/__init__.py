"""What a pre-trained model is worth and what it sees: recognition, DAVIS, reconstructions."""

ADAPTERS = ("duplicate", "sliding", "pairs")
"""Ways to see a single frame (:mod:`motionmae.evaluation.davis.frame_features`); here, as the command line needs no torch."""
