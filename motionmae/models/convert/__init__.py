"""Weights of other projects: Hugging Face's VideoMAE, released VideoMAE and mae_st files."""
