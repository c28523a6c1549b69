"""Packed rows, their order, and the batches made from them."""
