"""The cost of inference: time to the first token, time of each next token, and memory, of all models on the same prefixes.

In each round every model runs once, in a shuffled order, so that a machine that gets slower gets slower for all of them;
times are medians over rounds. Decoding is greedy, by the code that `fnet-t5 generate` runs. Weights and prefixes are random:
time and memory do not depend on them, because no stop token ends a text early.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from launch.bench.benchmark_models import BenchmarkModel
from launch.bench.inference_plan import InferencePlan
from launch.bench.inference_record import InferenceRecord
from launch.bench.machine import machine
from models.architectures.build import build_model
from models.architectures.decoder import LayerCache
from models.architectures.single_process import SingleProcessModel
from models.config import ModelConfig
from models.cost.inference_cost import cache_bytes, first_token_flops, step_bytes, token_flops
from models.generation.decode import DecodingSession, prepare_prompts
from models.generation.sampling import Sampling, decode
from models.layers.initialization import initialize

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
START_ID = 0
WARM_UP_TOKENS = 3


@dataclass(frozen=True)
class Memory:
    """Bytes at one length of a text."""

    cache: int
    """Keys and values in use."""
    held: int
    """The storage behind them."""
    peak: int | None
    """Most that was allocated on the GPU; None on a CPU."""


@dataclass(frozen=True)
class TimedText:
    """One generated text of B rows, with its times and memory."""

    tokens: list[Tensor]
    """The new tokens in order, (B,) each."""
    seconds: list[float]
    """Of each token; the first includes reading the prefix."""
    memory: dict[int, Memory]
    """At each requested length."""

    def following(self, new_tokens: int) -> float:
        """Mean seconds of tokens 2 … new_tokens."""
        return statistics.mean(self.seconds[1:new_tokens])


def measure(plan: InferencePlan) -> Iterator[list[InferenceRecord]]:
    """Measure a plan; yields the records of one (batch, prefix) after the other."""
    compared = plan.models()
    models = {config: _model(config, plan) for config in dict.fromkeys(one.config for one in compared)}
    shuffle = random.Random(0)
    for batch, prefix in plan.cells:
        prompts = torch.randint(plan.vocab_size, (batch, prefix), generator=torch.Generator().manual_seed(prefix)).tolist()
        inputs = {config: prepare_prompts(model, prompts, prefix, START_ID) for config, model in models.items()}
        rounds: dict[ModelConfig, list[TimedText]] = {config: [] for config in models}
        for number in range(1 + plan.rounds):
            order = list(models)
            shuffle.shuffle(order)
            for config in order:
                ids, mask = (tensor.to(plan.device) for tensor in inputs[config])
                if number == 0:
                    write(models[config], ids, mask, [min(WARM_UP_TOKENS, *plan.new_tokens)])
                else:
                    rounds[config].append(write(models[config], ids, mask, plan.new_tokens))
        yield [
            _record(plan, one, batch, prefix, new_tokens, rounds[one.config])
            for new_tokens in sorted(set(plan.new_tokens))
            for one in compared
        ]


def write(model: SingleProcessModel, ids: Tensor, mask: Tensor, lengths: Sequence[int]) -> TimedText:
    """Continue prompts from `prepare_prompts` greedily to the longest of `lengths`, and record the memory at each length."""
    never = [model.config.vocab_size]  # no logit has this id: nothing ends a text before its length
    before = _start_peak(ids.device)
    tokens, seconds, memory = [], [], {}
    _wait(ids.device)
    start = time.perf_counter()
    with torch.no_grad():
        session = DecodingSession(model, ids, mask, START_ID)
    for token in decode(session, stops=never, sampling=Sampling(max_new_tokens=max(lengths))):
        _wait(ids.device)
        seconds.append(time.perf_counter() - start)
        tokens.append(token)
        if len(tokens) in lengths:
            used, held = _cache_bytes(session.caches)
            memory[len(tokens)] = Memory(used, held, _peak(ids.device, model, before))
        start = time.perf_counter()
    return TimedText(tokens, seconds, memory)


def _model(config: ModelConfig, plan: InferencePlan) -> SingleProcessModel:
    model = build_model(config)
    initialize(model, seed=0)
    return model.to(plan.device, DTYPES[plan.precision]).eval()


def _cache_bytes(caches: Sequence[LayerCache]) -> tuple[int, int]:
    """Bytes of the keys and values in use, and of the storage behind them; each storage is counted once."""
    tensors = [
        tensor for cache in caches for pair in (cache.self_keys_values, cache.cross_keys_values) for tensor in pair or ()
    ]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors), sum(storages.values())


def _start_peak(device: torch.device) -> int:
    """Reset the peak of allocated memory; returns the bytes that are allocated already, by the weights of all models."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device, model: SingleProcessModel, before: int) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) - before + _weight_bytes(model)


def _weight_bytes(model: SingleProcessModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _record(
    plan: InferencePlan, one: BenchmarkModel, batch: int, prefix: int, new_tokens: int, rounds: Sequence[TimedText]
) -> InferenceRecord:
    config, bytes_per_value = one.config, DTYPES[plan.precision].itemsize
    firsts = [written.seconds[0] for written in rounds]
    following = [written.following(new_tokens) for written in rounds]
    caches = cache_bytes(config, prefix, new_tokens, batch, bytes_per_value)
    memory = rounds[-1].memory[new_tokens]
    return InferenceRecord(
        pairing=one.pairing,
        arm=one.name,
        size=plan.size,
        batch=batch,
        prefix=prefix,
        new_tokens=new_tokens,
        first_token_seconds=statistics.median(firsts),
        token_seconds=statistics.median(following),
        first_token_rounds=firsts,
        token_rounds=following,
        parameters=one.parameters,
        training_flops=one.training_flops,
        mismatch=one.mismatch,
        first_token_flops=first_token_flops(config, prefix),
        token_flops=token_flops(config, prefix, new_tokens),
        step_bytes=step_bytes(config, prefix, new_tokens, batch, bytes_per_value),
        weight_bytes=one.parameters * bytes_per_value,
        cache_bytes=caches.total,
        self_cache_bytes=caches.own,
        cross_cache_bytes=caches.cross,
        measured_cache_bytes=memory.cache,
        held_cache_bytes=memory.held,
        peak_bytes=memory.peak,
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_decoder_layers,
        d_model=config.d_model,
        num_heads=config.num_heads,
        encoder_d_ff=0 if config.is_decoder_only else config.encoder_block_config.d_ff,
        d_ff=config.d_ff,
        vocab_size=config.vocab_size,
        training_encoder_length=plan.training_row.encoder,
        training_decoder_length=plan.training_row.decoder,
        fourier_backend=config.fourier_backend if one.name == "fnet_t5" else None,
        precision=plan.precision,
        device=plan.device,
        threads=torch.get_num_threads(),
        machine=machine(plan.device),
    )
