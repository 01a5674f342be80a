"""Running on clusters and in containers: what is here, the SLURM job, the state of a cohort."""
