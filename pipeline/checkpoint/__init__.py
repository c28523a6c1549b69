"""Saving a run, resuming it, and changing its mesh."""
