"""Translate published VideoMAE and MAE-ST weights to our names, and ours to Hugging Face's."""
