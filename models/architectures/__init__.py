"""Encoder-decoder, decoder-only and encoder-only models, as an ordered list of pieces and as one module."""
