"""The parallel mesh: tensor-parallel layers, pipeline stages, random states, and checks between ranks."""
