"""What happens around a training step, one small class each; `default.py` lists them in their order."""
