"""Encoder-decoder, decoder-only and encoder-only models, each as an ordered list of pieces and as one module."""
