"""Estimates before a run: FLOPs, memory, throughput, days."""
