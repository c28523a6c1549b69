"""How a preparation ends: one line for a signal and for a sudden death, and no error because nobody reads the output."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

import typer

INTERRUPTED = "interrupted; rerun the same command to resume"
DIED = (
    "error: the preparation died: its process or Ray's was killed, usually because memory ran out. Use fewer workers or "
    "smaller unit_bytes, and rerun the same command to resume"
)
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class _StopSignalError(BaseException):
    """Not an Exception, so that nothing on the way takes it for a failed call."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def one_line_when_interrupted() -> Iterator[None]:
    """End the program after Ctrl-C, SIGTERM or SIGHUP with one line and the usual exit code: 130, 143 or 129."""

    def stop(number: int, frame: FrameType | None) -> None:
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_DFL)  # a second signal ends the program at once
        raise _StopSignalError(number)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in _SIGNALS} if is_main else {}
    try:
        yield
    except KeyboardInterrupt:
        _end(signal.SIGINT)
    except _StopSignalError as stopped:
        _end(stopped.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int) -> None:
    typer.echo(INTERRUPTED, err=True)
    raise typer.Exit(128 + number)


@contextmanager
def one_line_when_killed() -> Iterator[None]:
    """Write one line to stderr if this process dies inside the block: Ray ends it when one of Ray's processes is killed.

    A shell waits for this process to close a pipe; a last line in it says that all is well.
    """
    program = f"read -r line || echo {shlex.quote(DIED)} >&2"
    try:
        watcher = subprocess.Popen(["/bin/sh", "-c", program], stdin=subprocess.PIPE, start_new_session=True)
    except OSError:  # without a shell there is no such line
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            watcher.communicate(b"end\n")


@contextmanager
def output_may_be_closed() -> Iterator[None]:
    """Go on without output if its reader ends, as in `fnet-t5 prepare … | head -1`."""
    before = sys.stdout
    sys.stdout = _Tolerant(before)
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        sys.stdout = before


class _Tolerant:
    """A text stream that discards what can no longer be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
