"""The statistics of compute-matched comparison: points, Chinchilla's three approaches, intervals, compute multipliers."""
