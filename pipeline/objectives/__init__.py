"""Objectives: what the encoder reads and what the decoder writes, made from packed rows of tokens by numpy."""
