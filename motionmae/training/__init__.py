"""The trainer, its tasks (pre-training and fine-tuning) and its callbacks."""
