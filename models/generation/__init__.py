"""Generating text: sampling, beam search, caches."""
