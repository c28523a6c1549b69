"""Plain PyTorch modules and their mathematics: no distribution, no data, no tracking."""
