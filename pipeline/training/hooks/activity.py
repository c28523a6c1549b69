"""Tells the watchdog and the log what this rank is doing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipeline.distributed.watchdog import Watchdog
from pipeline.tracking.logs import set_step
from pipeline.training.hooks.hook import Hook

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer

_log = logging.getLogger(__name__)


class Activity(Hook):
    """Every announced activity counts as progress for the watchdog, and is a log record of level debug."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def on_activity(self, trainer: Trainer, activity: str) -> None:
        set_step(trainer.step)
        self._watchdog.beat(activity)
        _log.debug(activity)
