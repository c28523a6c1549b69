"""Memory, stages, communication and time of a run, before any GPU is asked for."""
