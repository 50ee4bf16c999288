"""Convert published VideoMAE and MAE-ST weights to this project's names, and these names to Hugging Face's."""
