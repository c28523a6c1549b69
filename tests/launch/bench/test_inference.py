"""`bench inference`: matched arms checked by another count, texts equal to `generate`, memory from the bytes of tensors."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models.generation.decode
from launch.bench.benchmark_models import BenchmarkModel, benchmark_models
from launch.bench.inference import measure, write
from launch.bench.inference_plan import InferencePlan
from launch.bench.inference_record import InferenceRecord, columns, markdown, read_records, tables
from models.architectures.build import build_model
from models.architectures.pieces import Inputs, TextInputs
from models.config import ModelConfig
from models.cost.flops import Lengths, fourier_mixing
from models.generation.decode import prepare_prompts
from models.generation.sampling import Sampling, generate
from models.layers.initialization import initialize
from pipeline.scaling.ladder.arm_models import arm_model

ROW = Lengths(32, 32)
TINY: dict[str, Any] = {
    "size": "demo",
    "vocab_size": 1024,
    "prefixes": (24,),
    "new_tokens": (2, 5),
    "batches": (1, 3),
    "rounds": 2,
    "training_row": ROW,
}
OPTIONS = ["--size", "demo", "--vocabulary", "1024", "--rounds", "2", "--threads", "1"]
OPTIONS += ["--encoder-length", "32", "--decoder-length", "32"]


@pytest.fixture(scope="module")
def arms() -> list[BenchmarkModel]:
    return benchmark_models("t5-v1.1-small", 32128, Lengths(512, 128), max_length=4352, fourier_backend="fft")


@pytest.fixture(scope="module")
def records() -> list[InferenceRecord]:
    return [record for found in measure(InferencePlan(**TINY)) for record in found]


@pytest.fixture
def threads() -> Any:
    """Restore the number of threads, which `--threads` sets for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


def training_flops(config: ModelConfig, row: Lengths) -> float:
    with torch.device("meta"):
        model = build_model(config)
        encoder, decoder = (torch.zeros(1, count, dtype=torch.int64) for count in (row.encoder, row.decoder))
        text = torch.cat([encoder, decoder], dim=1)
        with FlopCounterMode(display=False) as counter:
            if config.is_decoder_only:
                model(TextInputs(text, torch.ones_like(text)))
            else:
                model(Inputs(encoder, torch.ones_like(encoder), decoder))
    transforms = 0.0
    if config.mixing == "fourier" and not config.is_decoder_only:  # torch's counter does not count FFTs
        transforms = config.num_encoder_layers * fourier_mixing(row.encoder, config.d_model)
    return 3 * (counter.get_total_flops() + transforms)


def test_arms_are_equal_in_the_quantity_of_their_pairing(arms: list[BenchmarkModel]) -> None:
    assert [(arm.pairing, arm.name) for arm in arms] == [
        (pairing, name) for pairing in ("equal_parameters", "equal_training_compute") for name in ("fnet_t5", "t5", "gpt2")
    ]
    baseline = next(arm for arm in arms if arm.name == "t5")
    for arm in arms:
        assert arm.config.architecture == arm.name
        assert arm.parameters == parameters(arm.config)
        assert arm.training_flops == pytest.approx(training_flops(arm.config, Lengths(512, 128)), rel=1e-12)
        if arm.pairing == "equal_parameters":
            assert arm.parameters == pytest.approx(baseline.parameters, rel=0.02)
        else:
            assert arm.training_flops == pytest.approx(baseline.training_flops, rel=0.02)


def test_ladder_and_benchmark_use_the_same_gpt2() -> None:
    row = Lengths(512, 128)
    planned = arm_model("gpt2", {"size": "t5-v1.1-base"}, 32128, row)
    compared = benchmark_models("t5-v1.1-base", 32128, row, max_length=640, fourier_backend="fft")
    shapes = {one.pairing: one.config for one in compared if one.name == "gpt2"}
    assert planned == shapes["equal_parameters"]
    assert planned.shape == "16 x 1024, 16 heads"
    assert shapes["equal_training_compute"].shape == "12 x 768, 12 heads"


def test_records_of_an_older_version_show_their_measured_shape() -> None:
    records = read_records(Path(__file__).parents[3] / "docs" / "reports" / "cpu-smoke" / "inference.json")
    assert {record.num_heads for record in records} == {None}
    rows = [row for _, rows in tables(records) for row in rows if "gpt2" in row]
    assert {row[columns(records).index("shape")] for row in rows} == {"10 x 640", "6 x 384"}


def test_hybrid_and_t5_differ_only_in_the_encoder(arms: list[BenchmarkModel]) -> None:
    names = ("d_model", "d_ff", "d_kv", "num_heads", "num_decoder_layers", "num_encoder_layers", "vocab_size", "tie_embeddings")
    assert len({tuple(getattr(arm.config, name) for name in names) for arm in arms if arm.name != "gpt2"}) == 1


def test_the_timed_text_equals_the_output_of_generate() -> None:
    prompts = torch.randint(1024, (3, 24), generator=torch.Generator().manual_seed(1)).tolist()
    for arm in InferencePlan(**TINY).models():
        model = build_model(arm.config)
        initialize(model, seed=0)
        ids, mask = prepare_prompts(model, prompts, 24, 0)
        timed = torch.stack(write(model.eval(), ids, mask, [3, 9]).tokens)
        # `generate` ends a text at token 1: up to there both must be equal
        for row in range(3):
            steps = generate(
                model, ids[row : row + 1], mask[row : row + 1], start_id=0, eos_id=1, sampling=Sampling(max_new_tokens=9)
            )
            alone = [int(token) for token in steps]
            assert timed[: len(alone), row].tolist() == alone
        assert timed.shape == (9, 3)


def test_a_stop_token_does_not_end_a_timed_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """All logits except the end token's are lowered: every token is the end token, and decoding continues."""
    last = models.generation.decode.DecodingSession._last

    def ends(session: models.generation.decode.DecodingSession, logits: torch.Tensor) -> torch.Tensor:
        return last(session, logits).index_fill(1, torch.tensor([1]), 1e9)

    monkeypatch.setattr(models.generation.decode.DecodingSession, "_last", ends)
    model = build_model(InferencePlan(**TINY).models()[0].config)
    initialize(model, seed=0)
    written = write(model, *prepare_prompts(model, [[5] * 24], 24, 0), [7])
    assert [int(token) for token in written.tokens] == [1] * 7


def test_records_have_measurements_and_formulas(records: list[InferenceRecord]) -> None:
    places = [(record.pairing, record.batch, record.prefix, record.new_tokens, record.arm) for record in records]
    assert len(set(places)) == len(places) == 2 * 2 * 1 * 2 * 3
    for record in records:
        assert record.measured_cache_bytes == record.cache_bytes == record.self_cache_bytes + record.cross_cache_bytes
        assert record.cache_bytes <= record.held_cache_bytes
        assert (record.cross_cache_bytes == 0) == (record.arm == "gpt2")
        assert record.weight_bytes == 4 * record.parameters
        assert len(record.first_token_rounds) == len(record.token_rounds) == 2
        assert record.token_seconds == statistics.median(record.token_rounds) > 0
        assert record.first_token_seconds == statistics.median(record.first_token_rounds) > 0
        assert record.peak_bytes is None


def test_t5_is_measured_once_and_listed_in_both_pairings(records: list[InferenceRecord]) -> None:
    by_pairing = [
        [replace(record, pairing="") for record in records if record.arm == "t5" and record.pairing == pairing]
        for pairing in ("equal_parameters", "equal_training_compute")
    ]
    assert by_pairing[0] == by_pairing[1]
    assert len(by_pairing[0]) == 4


def test_bytes_equal_a_computation_by_hand(records: list[InferenceRecord]) -> None:
    """demo: 2 decoder layers of 4 heads of 32; 3 rows of 24 tokens and 5 new ones, in fp32."""
    found = next(r for r in records if (r.arm, r.batch, r.new_tokens) == ("fnet_t5", 3, 5))
    assert found.cross_cache_bytes == 2 * 2 * (4 * 32) * 24 * 3 * 4
    assert found.self_cache_bytes == 2 * 2 * (4 * 32) * 5 * 3 * 4  # the start token and four of the five new tokens


def test_weights_and_caches_in_bf16_take_half() -> None:
    plan = InferencePlan(**{**TINY, "batches": (1,), "rounds": 1, "precision": "bf16"})
    for record in next(measure(plan)):
        assert record.weight_bytes == 2 * record.parameters
        assert record.measured_cache_bytes == record.cache_bytes


def test_skipped_large_cells_are_named() -> None:
    plan = InferencePlan(**{**TINY, "prefixes": (24, 48), "most_tokens": 72})
    assert plan.cells == [(1, 24), (1, 48), (3, 24)]
    assert plan.skipped == [(3, 48)]


def test_markdown_has_a_row_for_each_record(records: list[InferenceRecord]) -> None:
    lines = markdown(records).splitlines()
    rows = [line for line in lines if line.startswith("| ") and "---" not in line and "arm" not in line]
    assert len(rows) == len(records)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    for row, record in zip(rows, records, strict=False):
        if record.arm == "t5":
            assert [cell.strip() for cell in row.split("|")].count("1.00") == 2


@pytest.mark.usefixtures("threads")
def test_the_command_writes_flat_json_and_tables(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, report = tmp_path / "new" / "inference.json", tmp_path / "inference.md"
    texts = ["--prefix", "8", "24", "--new", "2", "3", "--batch", "1", "2", "--most-tokens", "24"]
    assert command("bench", "inference", *OPTIONS, *texts, "--output", output, "--report", report) == 0
    shown = capsys.readouterr().out
    assert "skipped by --most-tokens: 2 x 24" in shown
    assert "equal training compute: gpt2, " in shown
    found = json.loads(output.read_text())
    assert len(found) == 2 * 3 * 3 * 2  # pairings, arms, cells, lengths
    for record in found:
        assert set(record) == {field.name for field in fields(InferenceRecord)}
        assert not any(isinstance(value, dict) for value in record.values())
        assert record["threads"] == 1
        assert "torch" in record["machine"]
    assert report.read_text().count("| gpt2 |") == 2 * 3 * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "gpt2"], "--size 'gpt2' is no size of a T5: choose one of nano, demo, t5-small"),
        (["--prefix", "0"], "--prefix 0: give numbers of at least 1"),
        (["--new", "1"], "--new 1: give numbers of at least 2"),
        (["--batch", "0"], "--batch 0: give numbers of at least 1"),
        (["--rounds", "0"], "--rounds 0: it must be at least 1"),
        (["--device", "tpu"], "--device 'tpu': choose one of cpu, cuda"),
        (["--precision", "fp16"], "--precision 'fp16': choose one of fp32, bf16"),
        (["--backend", "dct"], "--backend 'dct': choose one of fft, matmul, folded, auto"),
        (["--prefix", "64", "--batch", "2", "--most-tokens", "100"], "--most-tokens 100: no batch x prefix is that small"),
        (["--size", "nano"], "--size nano: no gpt2 of equal parameters comes nearer than"),
    ],
)
def test_a_wrong_option_is_a_one_line_error(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command("bench", "inference", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error without a GPU")
def test_a_missing_gpu_is_named(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("bench", "inference", "--device", "cuda") == 1
    assert "torch sees no CUDA device" in capsys.readouterr().err
