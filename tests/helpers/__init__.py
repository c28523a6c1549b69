"""Helpers shared by tests: datasets, recipes, processes, and the worker scripts that tests start."""
