"""Experiments: ablation tables, the evidence for motion targets, the scaling model."""
