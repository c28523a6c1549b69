"""The progress bar and the peak memory of a preparation."""
