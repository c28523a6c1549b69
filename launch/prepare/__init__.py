"""What preparing a dataset shows while it runs: progress and peak memory."""
