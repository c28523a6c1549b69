"""Layers: attention, feed-forward, normalization, embedding, positions, heads."""
