"""`fnet-t5 scaling plan`, `add` and `predict` on a recipe whose data are not there yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.scaling.ladder.ladder import read_ladder

RECIPE = """
name: small
data: {path: data/text, encoder_length: 16, decoder_length: 8}
vocab_size: 500
train_tokens: 1.0e+9
objectives: [prefix_lm]
sizes:
  s: {micro_batch_size: 4, model: {d_model: 16, d_ff: 64, d_kv: 8, num_heads: 2, num_encoder_layers: 2, num_decoder_layers: 2}}
arms: {t5: {}, prefix_decoder: {}}
budgets: [1.0e+11]
learning_rate: {values: [0.001, 0.003, 0.009], sizes: [s], budget: 5.0e+10, check_arms: []}
batch: {tokens: 96, exponent: 0}
device: {flops_per_second: 1.0e+9}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def test_a_plan_shows_text_a_parameter_and_flops_as_needed_and_can_be_extended(
    command: Callable[..., int], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ladder"
    assert command("scaling", "plan", recipe, "--output", folder) == 0
    shown = capsys.readouterr().out
    run = read_ladder(folder).run("t5-s-seed0")
    assert f"{run.ends[0].tokens / 1e6:,.1f} ({run.ends[0].tokens / run.num_parameters:,.1f})" in shown
    assert f"{run.needed_flops_per_row / run.flops_per_row:.1%}" in shown  # type: ignore[operator]
    assert "prefix_decoder is trained at 1 of the 4 sizes" in shown
    assert command("scaling", "add", folder, "arms.fnet_t5={}", "--dry-run") == 0
    assert "Adds 2 runs: sweep-fnet_t5-s, fnet_t5-s-seed0" in capsys.readouterr().out
    assert not read_ladder(folder).extensions
    assert command("scaling", "add", folder, "arms.fnet_t5={}") == 0
    assert [run.name for run in read_ladder(folder).runs][-1] == "fnet_t5-s-seed0"
    assert command("scaling", "add", folder, "batch.tokens=192") == 1
    assert "an extension cannot change what was planned, and this one changes batch" in capsys.readouterr().err


def test_short_plans_name_the_run_and_the_remedy(
    command: Callable[..., int], recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("scaling", "plan", recipe, "budgets=[6e9]") == 1
    error = capsys.readouterr().err
    assert "prefix_decoder-s-seed0 at 6e+09 FLOPs: " in error
    assert "set schedule.allow_short=true" in error
    assert command("scaling", "plan", recipe, "budgets=[6e9]", "schedule={warmup: 0.1, allow_short: true}") == 0
    assert "Too short to compare arms (schedule.allow_short): " in " ".join(capsys.readouterr().out.split())


def test_a_recipe_predicts_and_a_ladder_without_results_does_not(
    command: Callable[..., int], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("scaling", "plan", recipe, "--output", tmp_path / "ladder") == 0
    assert command("scaling", "predict", tmp_path / "ladder", "--flops", "1e12") == 1
    assert "has no finished run to predict from" in capsys.readouterr().err
    assert command("scaling", "predict", "scaling/h200-hour", "--params", "1e7", "--tokens", "1e8") == 0
    expected = 0.8 + 69 / 1e7**0.35 + 240 / 1e8**0.37
    assert f"{expected:.4f}" in capsys.readouterr().out
    assert command("scaling", "predict", "scaling/h200-hour") == 1
    assert "give one or two of --flops, --params and --tokens" in capsys.readouterr().err
