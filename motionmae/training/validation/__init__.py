"""Validation while training: accuracy of fine-tuning, losses of the decoder heads, k-NN; the best checkpoint."""
