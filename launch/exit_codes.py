"""Exit codes that other programs act upon."""

import signal

SIGNAL_EXIT = 128
"""Exit codes above this one stand for a signal, as in a shell."""
STOPPED_EXITS = frozenset(SIGNAL_EXIT + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))
"""Somebody asked for the end."""
PREEMPTED_EXIT = 75
"""sysexits.h's "temporary failure, try again": what saved itself when it was asked to stop, and waits to be started again."""
