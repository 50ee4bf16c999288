"""Trackers: sinks that send the metrics of a run to Weights & Biases, MLflow or Trackio.

metrics.jsonl is complete after every kill, and a tracker may not be. So a tracker says which step it stores last, and
rows that it lacks are sent again from metrics.jsonl when the run resumes. No step is sent twice.
"""
