"""Clusters and containers: check of a machine, SLURM arrays, progress of a cohort."""
