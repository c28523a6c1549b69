"""The optimizer, its learning-rate schedule, ZeRO's fragments, and the guard that skips bad steps."""
