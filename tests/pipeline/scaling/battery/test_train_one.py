"""Training and testing one run: rows solved equal greedy generation, order-blind encoders, schedule, stopping, determinism."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.architectures.build import build_model
from models.architectures.seq2seq import Seq2Seq
from models.layers.initialization import initialize
from pipeline.scaling.battery.settings import BatteryRecipe, BatteryRun
from pipeline.scaling.battery.tasks.task_rows import START, TaskRows, after_start
from pipeline.scaling.battery.train_one import evaluate, learning_rate_share, shuffle_inputs, train_one

D32 = {
    **{"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_encoder_layers": 3, "num_decoder_layers": 2},
    "tie_embeddings": False,  # with tied ones an untrained model repeats its input
}
TRAINING = {
    **{"steps": 6, "rows": 4, "targets": 1, "most_rows": 64, "warmup_steps": 2, "validate_every": 3, "validation_rows": 8},
    "test_rows": 16,
}


def battery_run(task: str = "recall", arm: str = "t5", **training: Any) -> BatteryRun:
    values = {
        "tasks": (task,),
        "arms": (arm,),
        "lengths": (16,),
        "sizes": {"d32": {"model": D32}},
        "seeds": 1,
        "learning_rate": 0.01,
    }
    recipe = BatteryRecipe.model_validate({**values, "training": {**TRAINING, **training}})
    return next(recipe.runs())


def fresh_model(run: BatteryRun) -> Seq2Seq:
    model = build_model(run.model())
    initialize(model, 0)
    assert isinstance(model, Seq2Seq)
    return model


@torch.no_grad()
def write_greedily(model: Seq2Seq, encoder_ids: np.ndarray, length: int) -> np.ndarray:
    """(B, M): each token is the likeliest after those that were written before it."""
    ids = torch.from_numpy(encoder_ids)
    encoded = model.encode(ids, torch.ones_like(ids))
    token = torch.full((len(ids), 1), START)
    written = []
    for _ in range(length):
        token = model.decode(token, encoded)[:, -1:].argmax(-1)
        written.append(token)
    return torch.cat(written, dim=1).numpy()


def test_rows_solved_are_the_rows_that_greedy_generation_writes() -> None:
    """The targets of every second row are what the model writes; of the others one token differs, at any place."""
    run = battery_run("copy")
    model, rows = fresh_model(run), run.make_task().rows("0", np.arange(64))
    targets = write_greedily(model, rows.encoder_ids, 16)
    changed = np.arange(1, 64, 2)
    targets[changed, changed % 16] = (targets[changed, changed % 16] + 1) % 34
    scores = evaluate(model, TaskRows(rows.encoder_ids, after_start(targets), targets))
    greedy = (write_greedily(model, rows.encoder_ids, 16) == targets).all(1)
    assert scores.solved == greedy.mean() == 0.5
    assert 0.5 < scores.tokens < 1
    assert len(np.unique(targets)) > 8


@pytest.mark.parametrize(("arm", "is_blind"), [("ff_only", True), ("t5_no_positions", True), ("ff_only_positions", False),
                                               ("fnet_t5", False), ("t5", False)])  # fmt: skip
def test_only_an_encoder_without_positions_and_fourier_is_blind_to_order(arm: str, is_blind: bool) -> None:
    run = battery_run("copy", arm)
    model, rows = fresh_model(run), run.make_task().rows("0", np.arange(8))
    with torch.no_grad():
        inputs = [torch.from_numpy(some.encoder_ids) for some in (rows, shuffle_inputs(rows))]
        logits = [model(model.inputs((ids, torch.ones_like(ids), torch.from_numpy(rows.decoder_ids)))) for ids in inputs]
    difference = (logits[0] - logits[1]).abs().max().item()
    assert difference < 1e-4 if is_blind else difference > 1e-2


def test_shuffled_inputs_hold_the_same_tokens_in_another_order() -> None:
    rows = battery_run().make_task().rows("0", np.arange(32))
    shuffled = shuffle_inputs(rows)
    np.testing.assert_array_equal(np.sort(shuffled.encoder_ids, axis=1), np.sort(rows.encoder_ids, axis=1))
    assert (shuffled.encoder_ids != rows.encoder_ids).any(axis=1).all()
    assert shuffled.targets is rows.targets


def test_the_learning_rate_rises_stays_and_falls() -> None:
    training = battery_run(steps=100, warmup_steps=10).training
    shares = [learning_rate_share(step, training) for step in range(1, 101)]
    assert shares[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert set(shares[10:80]) == {1.0}
    assert shares[80:] == pytest.approx([1 - step / 20 for step in range(20)])


def test_a_run_is_a_function_of_its_settings() -> None:
    outcomes = [train_one(battery_run("periodic_gap", "fnet_t5_positions"), lambda: False) for _ in range(2)]
    first, second = (replace(one, seconds=0.0) for one in outcomes if one is not None)
    assert first == second
    assert [point.step for point in first.curve] == [3, 6]
    assert first.steps == 6


def test_training_lowers_the_loss_and_a_solved_run_stops() -> None:
    outcome = train_one(battery_run("nested_lists", steps=60, validate_every=20, rows=32), lambda: False)
    assert outcome is not None
    assert outcome.curve[-1].loss < outcome.curve[0].loss - 0.2
    easy = battery_run("nested_lists", steps=60, validate_every=20, rows=32, validation_rows=64, solved=1e-6)
    stopped = train_one(easy, lambda: False)
    assert stopped is not None
    assert [point.step for point in stopped.curve] == [20]
    assert stopped.curve[0].loss == outcome.curve[0].loss


def test_a_run_that_is_stopped_has_no_result() -> None:
    asked = iter([False, False, True])
    assert train_one(battery_run(), lambda: next(asked)) is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_learnt_positions_are_enough_to_copy_and_their_absence_is_not_made_up_for() -> None:
    size = {**D32, "tie_embeddings": True, "feed_forward": "relu", "vocab_multiple": 8}
    training = {"steps": 500, "rows": 32, "warmup_steps": 100, "validate_every": 250, "test_rows": 512}
    placed, blind = (
        train_one(replace(battery_run("copy", arm, **training), section=size), lambda: False)
        for arm in ("ff_only_positions", "ff_only")
    )
    assert placed is not None
    assert blind is not None
    assert placed.tokens > 0.9
    assert placed.solved > 0.3
    assert placed.shuffled_solved == 0
    assert blind.tokens < 0.3
    assert blind.solved == 0
