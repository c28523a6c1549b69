"""Scoring and generating with a trained model."""
