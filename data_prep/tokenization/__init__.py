"""Tokenizers: training, loading, and the fast backend."""
