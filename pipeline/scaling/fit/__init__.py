"""Statistics of ladders: points, fits, intervals, multipliers. No training code."""
