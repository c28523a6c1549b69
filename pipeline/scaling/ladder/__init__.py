"""Compute-matched ladders: recipes, planned runs, learning rates, states."""
