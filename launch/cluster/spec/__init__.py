"""The cluster file: one schema of common keys, and one section for each platform."""
