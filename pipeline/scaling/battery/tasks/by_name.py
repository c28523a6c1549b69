"""The tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.scaling.battery.tasks.nested_lists import NestedLists
from pipeline.scaling.battery.tasks.periodic import PeriodicGap
from pipeline.scaling.battery.tasks.recall import Recall
from pipeline.scaling.battery.tasks.sequences import Copy, Reverse, Sort
from pipeline.scaling.battery.tasks.task_rows import Task

TASKS: dict[str, Callable[[int], Task]] = {
    "recall": Recall,
    "copy": Copy,
    "reverse": Reverse,
    "sort": Sort,
    "periodic_gap": PeriodicGap,
    "nested_lists": NestedLists,
}
