"""The one policy for repeating requests that may succeed later, with urllib3's `Retry` for back-off and `Retry-After`."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """At least `min_tries` tries, and further ones until `patience_seconds` have passed since the first.

    The waits are 0, 2, 4, … times `first_wait` seconds, at most `longest_wait`, with up to a tenth of `longest_wait` of
    chance, so that many processes do not ask at once. A server's `Retry-After` is honoured up to `longest_retry_after`.
    """

    min_tries: int = 4
    patience_seconds: float = 300
    first_wait: float = 0.5
    longest_wait: float = 60
    longest_retry_after: float = 600


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A wait before the next try: the `error` of try number `tries`, and for how many `seconds`."""

    error: Exception
    tries: int
    seconds: float


def retried(
    action: Callable[[], _Result],
    policy: RetryPolicy,
    is_final: Callable[[Exception], bool],
    retry_after: Callable[[Exception], str | None] = lambda error: None,
    on_wait: Callable[[Wait], None] = lambda wait: None,
) -> _Result:
    """The result of `action`. An exception that `is_final`, and that of the last try, is raised unchanged.

    `retry_after`: the header of that name in a server's answer, in seconds or as a date. `on_wait` is called before a wait.
    """
    begin = time.monotonic()
    state = Retry(
        total=None,
        backoff_factor=policy.first_wait,
        backoff_max=policy.longest_wait,
        backoff_jitter=min(policy.first_wait, policy.longest_wait / 10),
    )
    tries = 0
    while True:
        tries += 1
        try:
            return action()
        except Exception as error:
            if is_final(error):
                raise
            state = state.increment("GET", error=error)
            asked = _seconds_asked(state, retry_after(error))
            seconds = max(state.get_backoff_time(), min(asked, policy.longest_retry_after))
            elapsed = time.monotonic() - begin
            # A wait that the server asks for may exceed the patience once.
            out_of_patience = elapsed + (0 if asked else seconds) > policy.patience_seconds
            if tries >= policy.min_tries and out_of_patience:
                raise
            on_wait(Wait(error=error, tries=tries, seconds=seconds))
            time.sleep(seconds)


def _seconds_asked(state: Retry, header: str | None) -> float:
    with suppress(InvalidHeader):
        return state.parse_retry_after(header) if header else 0
    return 0
