"""What commands make of a ladder's recipe: an extended one, and predictions from its results or from what it assumes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from launch.config import load_config
from pipeline.scaling.ladder.ladder import LADDER_FILE, Ladder, make_ladder
from pipeline.scaling.ladder.recipe import LadderRecipe
from pipeline.scaling.predict import Asked, Prediction, predict, predict_from_assumed
from pipeline.scaling.results import collect


def extended_recipe(ladder: Ladder, recipe: str | None, overrides: Sequence[str]) -> LadderRecipe:
    """A recipe with `key=value` overrides; without one the ladder's own recipe is their base. Raises ConfigError."""
    if recipe is not None:
        return load_config(LadderRecipe, recipe, overrides, kind="scaling")
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "ladder.yaml"
        own.write_text(yaml.safe_dump(ladder.recipe.model_dump(mode="json"), sort_keys=False))
        return load_config(LadderRecipe, own, overrides, kind="scaling")


def predictions(place: str, asked: Asked, arms: Sequence[str]) -> tuple[str, list[Prediction], dict[str, str]]:
    """(measure, predictions, arm → why it has none) from a ladder's folder, or from a recipe.

    Raises ValueError for an unknown arm, and where nothing can be predicted.
    """
    asked.check()
    if not (Path(place) / LADDER_FILE).is_file():
        ladder = make_ladder(load_config(LadderRecipe, place, [], kind="scaling"))
        assumed = ladder.recipe.assumed
        return f"assumed, {assumed.source if assumed else ''}", [predict_from_assumed(ladder, asked)], {}
    collected = collect([Path(place)])
    if not collected.sets:
        raise ValueError(f"{place} has no finished run to predict from: complete it with `fnet-t5 scaling run {place}`")
    results = collected.sets[0]
    names = list(dict.fromkeys(point.arm for point in results.checked.points))
    if unknown := [arm for arm in arms if arm not in names]:
        raise ValueError(f"--arm {', '.join(unknown)} has no finished run; there are {', '.join(names)}")
    found, refused = [], {}
    for arm in arms or names:
        try:
            found.append(predict(arm, [point for point in results.checked.points if point.arm == arm], asked))
        except ValueError as error:
            refused[arm] = str(error)
    return results.measure, found, refused
