"""Exit codes that other programs act upon."""

PREEMPTED_EXIT = 75
"""sysexits.h's "temporary failure, try again": what saved itself when it was asked to stop, and waits to be started again."""
