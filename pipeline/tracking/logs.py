"""Log records of a worker process: one line each on stderr, with the rank and the step.

    info: 2026-11-30 14:42:28 [rank 3, step 120] saved step_00000120 in 1.4 s

The level comes first, because `launch/local.py` shows the log of a failed rank from its last line with `error: ` on.
"""

from __future__ import annotations

import logging
import os

LOG_LEVEL_VARIABLE = "FNET_T5_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error")
DEFAULT_LEVEL = "info"
# Our packages, and warnings of `warnings.warn`. Other libraries configure their own loggers.
_LOGGERS = ("data_prep", "launch", "models", "pipeline", "py.warnings")


class RankAndStep(logging.Filter):
    """Gives every record the fields of the format: `level` in lower case, and `where`, the rank and, once known, the step."""

    def __init__(self) -> None:
        super().__init__()
        self.rank = 0
        self.step: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        where = f"rank {self.rank}" if self.step is None else f"rank {self.rank}, step {self.step}"
        record.__dict__.update(level=record.levelname.lower(), where=where)
        return True


_position = RankAndStep()  # one process is one rank at one step, as it has one tree of loggers


def configure_logging(level: str | None = None) -> logging.Handler:
    """Send this process's log records of at least `level` to stderr. Returns the handler. A second call replaces the first.

    `level`: one of LEVELS; default: FNET_T5_LOG_LEVEL, or "info". The rank is torchrun's RANK, or 0. Raises ValueError for an
    unknown level.
    """
    number = parse_level(level or os.environ.get(LOG_LEVEL_VARIABLE) or DEFAULT_LEVEL)
    _position.rank, _position.step = int(os.environ.get("RANK", 0)), None
    handler = logging.StreamHandler()
    handler.addFilter(_position)
    handler.setFormatter(logging.Formatter("%(level)s: %(asctime)s [%(where)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logging.captureWarnings(True)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(number)
        logger.propagate = False  # a handler of the root logger would show every line twice
    return handler


def parse_level(name: str) -> int:
    """The number that `logging` has for a level of LEVELS, in any case. Raises ValueError for another name."""
    if name.lower() not in LEVELS:
        raise ValueError(f"log level {name!r} is unknown: --log-level and {LOG_LEVEL_VARIABLE} take {', '.join(LEVELS)}")
    return int(getattr(logging, name.upper()))


def set_step(step: int) -> None:
    """Later records of this process show `step`."""
    _position.step = step
