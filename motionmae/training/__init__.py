"""Joins models and data: DeepSpeed engine, loop, schedule, checkpoints, preemption, events."""
