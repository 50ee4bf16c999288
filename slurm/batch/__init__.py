"""What runs in the batch script of a job, around the ranks."""
