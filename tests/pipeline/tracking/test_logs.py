"""Log records of a process: rank, step and level in each line, and filtering by level."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from pipeline.tracking.logs import configure_logging, parse_level, set_step

LOGGERS = ("data_prep", "launch", "models", "pipeline", "py.warnings")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = {name: (log.handlers[:], log.level, log.propagate) for name in LOGGERS if (log := logging.getLogger(name))}
    yield
    logging.captureWarnings(False)
    for name, (handlers, level, propagate) in before.items():
        log = logging.getLogger(name)
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


def test_each_line_has_level_rank_and_step(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("FNET_T5_LOG_LEVEL", raising=False)
    configure_logging()
    log = logging.getLogger("pipeline.training.trainer")
    log.info("starting at step %d", 0)
    set_step(120)
    log.error("rank %d: no progress", 3)
    log.debug("hidden by default")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("info: ")
    assert first.endswith(" [rank 3] starting at step 0")
    assert second.startswith("error: ")
    assert second.endswith(" [rank 3, step 120] rank 3: no progress")


def test_the_level_comes_from_the_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("pipeline.training.trainer")
    monkeypatch.setenv("FNET_T5_LOG_LEVEL", "WARNING")
    configure_logging()
    log.info("hidden")
    log.warning("shown")
    assert capsys.readouterr().err.splitlines()[0].endswith("] shown")
    configure_logging("debug")  # an explicit level takes precedence; a second call adds no second handler
    log.debug("shown once")
    assert capsys.readouterr().err.count("shown once") == 1


def test_python_warnings_are_records_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    configure_logging()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("a library complains", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    shown = capsys.readouterr().err
    assert shown.startswith("warning: ")
    assert "[rank 1]" in shown
    assert "a library complains" in shown


def test_an_unknown_level_is_refused() -> None:
    assert parse_level("Info") == logging.INFO
    with pytest.raises(ValueError, match=r"log level 'chatty' is unknown: .* take debug, info, warning, error"):
        parse_level("chatty")
