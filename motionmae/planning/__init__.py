"""Estimates for a run before it is submitted: FLOPs, memory, throughput, days."""
