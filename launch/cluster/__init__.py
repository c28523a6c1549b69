"""SLURM, Kubernetes and Ray: specifications, rendered scripts, submission."""
