"""Launching on Slurm (or locally) through submitit, and surviving what a cluster does to a job."""
