"""The files of a run: folder, lease, events, history, checkpoints. Nothing here imports torch."""
