"""The training loop and the engine that runs a step."""
