"""What a run records: metrics, throughput, progress, provenance, MLflow."""
