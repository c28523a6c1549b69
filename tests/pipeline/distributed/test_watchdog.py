"""The watchdog on a fake store: whose progress counts, which neighbour is watched, and how much is asked of the store."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from pipeline.distributed import watchdog as module
from pipeline.distributed.watchdog import Watchdog


class FakeStore:
    """Keys and values as in the store of the process group, and the number of requests."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()

    def set(self, key: str, value: str) -> None:
        self.requests["set"] += 1
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        self.requests["get"] += 1
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        self.requests["check"] += 1
        return all(key in self.values for key in keys)

    def add(self, key: str, amount: int) -> int:
        self.requests["add"] += 1
        self.values[key] = str(int(self.values.get(key, b"0")) + amount).encode()
        return int(self.values[key])

    def compare_set(self, key: str, expected: str, value: str) -> None:
        self.requests["set"] += 1
        self.values.setdefault(key, value.encode())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


class Ended(Exception):
    """Stands for the end of the process."""


class Ranks:
    """Watchdogs of several ranks over one store, polled by hand."""

    def __init__(self, number: int, hang: float, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.store = clock, FakeStore()
        self.dogs = [Watchdog(rank, number, hang, peer_seconds=40) for rank in range(number)]
        self.dead: set[int] = set()

        def end(*ignored: Any) -> None:
            raise Ended

        monkeypatch.setattr(module, "_exit", end)
        for dog in self.dogs:
            dog._store = self.store
            dog._last_progress, dog._heard = clock[0], (b"", clock[0])
            monkeypatch.setattr(dog, "_end_hang", end)

    def poll(self, seconds: float = 5.0) -> list[int]:
        """One poll of every live rank; returns the ranks that ended."""
        self.clock[0] += seconds
        ended = []
        for rank, dog in enumerate(self.dogs):
            if rank not in self.dead:
                try:
                    dog._poll()
                except Ended:
                    ended.append(rank)
        self.dead.update(ended)
        return ended


def test_ranks_that_wait_for_a_working_one_do_not_hang(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 writes and hashes for 100 s, with reports; all others wait in a collective, and may wait 24 s for a hang."""
    ranks = Ranks(4, 24, clock, monkeypatch)
    for number in range(20):
        ranks.dogs[0].beat(f"hashing file {number}")
        assert ranks.poll() == []
    silent = [ranks.poll() for _ in range(6)]  # then nobody makes progress
    assert silent[:4] == [[]] * 4
    assert sorted(rank for ended in silent for rank in ended) == [0, 1, 2, 3]


def test_a_dead_rank_is_found_by_one_neighbour_and_told_to_all(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(8, 10_000, clock, monkeypatch)
    ranks.poll()
    ranks.dead.add(5)
    ended: list[int] = []
    polls = 0
    while len(ended) < 7:
        ended += ranks.poll()
        polls += 1
        assert polls < 12, ended
    first = ranks.dogs[0].first_failure()
    assert first is not None
    assert first.startswith("rank 5 has been silent for ")


def test_what_a_rank_asks_of_the_store_does_not_grow_with_the_ranks(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = {}
    for number in (2, 64, 512):
        ranks = Ranks(number, 100, clock, monkeypatch)
        ranks.poll()
        ranks.store.requests.clear()
        ranks.poll()
        requests[number] = {name: count / number for name, count in ranks.store.requests.items()}
    assert requests[2] == requests[64] == requests[512] == {"set": 1, "add": 1, "check": 2, "get": 1}
