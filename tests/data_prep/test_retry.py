"""The retry policy, with a clock that only its waits move."""

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from data_prep import retry
from data_prep.retry import RetryPolicy, Wait, retried


class _Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(retry, "time", clock)
    return clock


def _fail(error: Exception) -> None:
    raise error


def test_waits_double_up_to_the_longest_and_end_with_the_patience(clock: _Clock) -> None:
    waits: list[Wait] = []
    policy = RetryPolicy(patience_seconds=200, first_wait=1, longest_wait=30)
    with pytest.raises(OSError, match="broken"):
        retried(lambda: _fail(OSError("broken")), policy, lambda error: False, on_wait=waits.append)
    for wait, expected in zip(waits, [0, 2, 4, 8, 16, 30, 30, 30], strict=False):
        assert expected <= wait.seconds <= expected + 1
    assert [wait.tries for wait in waits] == list(range(1, len(waits) + 1))
    assert 150 < clock.now <= 200


def test_a_final_error_is_raised_at_once_and_a_slow_action_is_tried_a_few_times(clock: _Clock) -> None:
    with pytest.raises(ValueError, match="no"):
        retried(lambda: _fail(ValueError("no")), RetryPolicy(), lambda error: True)
    assert clock.now == 0
    tries = []

    def stalls() -> None:
        tries.append(clock.now)
        clock.sleep(500)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        retried(stalls, RetryPolicy(min_tries=3), lambda error: False)
    assert len(tries) == 3


@pytest.mark.parametrize("as_date", [False, True])
def test_the_server_decides_how_long_to_wait_up_to_a_limit(clock: _Clock, as_date: bool) -> None:
    # urllib3 subtracts the time of its own clock from a date.
    header = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=120), usegmt=True) if as_date else "120"
    waits: list[float] = []
    answers = iter([OSError(header), OSError("9999999"), OSError("soon"), None])

    def action() -> str:
        answer = next(answers)
        if answer:
            raise answer
        return "done"

    policy = RetryPolicy(patience_seconds=2000, longest_retry_after=600)
    done = retried(action, policy, lambda error: False, str, lambda wait: waits.append(wait.seconds))
    assert done == "done"
    assert waits[0] == pytest.approx(120, abs=5)
    assert waits[1] == 600
    assert waits[2] < 5
