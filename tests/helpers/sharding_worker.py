"""Worker for 4 processes: encoder layers on tensor groups of 2 and 4, and the same layers on one process.

    sharding_worker.py OUTPUT

Writes OUTPUT/<t>_<form>.json: largest differences forward and backward, and each rank's bytes sent and FLOPs of transforms.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.architectures.pieces import Seq2SeqState, pieces
from models.config import ModelConfig, expand_size
from models.layers.factory import TorchLayers
from models.layers.initialization import initial_value
from pipeline.config import MeshConfig
from pipeline.distributed.batch_parallel_encoder import has_partial_gradient, shard_encoder, sum_partial_gradients
from pipeline.distributed.mesh import join
from pipeline.distributed.tensor_parallel import MegatronLayers, shard_dim

NUM_TOKENS, LAYERS = 24, 2


class Counted:
    """Counts bytes passed to collectives (of the whole tensor) and FLOPs of transforms, forward and backward."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._patched: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Counter[str]:
        distributed, fft = torch.distributed, torch.fft
        self._wrap(distributed, "all_reduce", lambda x, *a: x)
        self._wrap(distributed, "all_gather_into_tensor", lambda out, x, *a: out)
        self._wrap(distributed, "reduce_scatter_tensor", lambda out, x, *a: x)
        for name, per_point in (("rfft", 2.5), ("fft", 5.0)):
            original = getattr(fft, name)

            def counted(x: Tensor, *a: Any, _f: Any = original, _per: float = per_point, **k: Any) -> Tensor:
                self.counts["fft_flops"] += _per * x.numel() * math.log2(x.shape[k["dim"]])  # type: ignore[assignment]
                return _f(x, *a, **k)

            self._patched.append((fft, name, original))
            setattr(fft, name, counted)
        return self.counts

    def _wrap(self, owner: Any, name: str, whole: Any) -> None:
        original = getattr(owner, name)

        def counted(*a: Any, **k: Any) -> Any:
            tensor = whole(*a)
            self.counts[name] += tensor.numel() * tensor.element_size()
            return original(*a, **k)

        self._patched.append((owner, name, original))
        setattr(owner, name, counted)

    def __exit__(self, *ignored: Any) -> None:
        for owner, name, original in self._patched:
            setattr(owner, name, original)


def layers(attending: int, feed_forward: str = "gated_gelu") -> ModelConfig:
    return ModelConfig(
        **expand_size({"size": "nano", "vocab_size": 128, "num_attention_layers": attending, "feed_forward": feed_forward})
    )


def build(config: ModelConfig, tensor_parallel: int, micro_batch: int) -> tuple[list[Any], list[torch.nn.Module]]:
    factory = MegatronLayers() if tensor_parallel > 1 else TorchLayers()
    model = shard_encoder(pieces(config, factory), micro_batch, tensor_parallel)
    model = [piece for piece in model if piece.name.startswith("encoder.layers")]
    modules = [piece.build(factory) for piece in model]
    rank = torch.distributed.get_rank() % tensor_parallel
    for piece, module in zip(model, modules, strict=True):
        module.double()
        for name, parameter in module.named_parameters():
            dim = shard_dim(parameter)
            shape = [size * (tensor_parallel if index == dim else 1) for index, size in enumerate(parameter.shape)]
            full = initial_value(parameter, f"{piece.name}.{name}", tuple(shape), 7).double()
            if parameter.ndim == 1:  # norms start at 1, which would hide a wrong scale
                full = full + torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
            with torch.no_grad():
                parameter.copy_(full if dim is None else full.chunk(tensor_parallel, dim)[rank])
    return model, modules


def run(config: ModelConfig, tensor_parallel: int, micro_batch: int, sum_partial: bool = True) -> dict[str, Any]:
    """Output, input gradient and every replicated parameter's gradient of two encoder layers, and the counts."""
    from megatron.core import parallel_state

    model, modules = build(config, tensor_parallel, micro_batch)
    generator = torch.Generator().manual_seed(micro_batch)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden = random(micro_batch, NUM_TOKENS, config.d_model).requires_grad_()
    upstream = random(micro_batch, NUM_TOKENS, config.d_model)
    mask = (torch.rand(micro_batch, NUM_TOKENS, generator=generator) > 0.2).long()
    tables = random(2, config.num_buckets, config.num_heads)
    rank = torch.distributed.get_rank() % tensor_parallel
    state = Seq2SeqState(hidden, hidden[:, :4], tables.chunk(tensor_parallel, -1)[rank], mask)
    with Counted() as counts:
        for piece, module in zip(model, modules, strict=True):
            state = piece.run(module, state)
        (state.encoder_hidden * upstream).sum().backward()
    partial = [p for module in modules for p in module.parameters() if has_partial_gradient(p)]
    if sum_partial and tensor_parallel > 1:
        sum_partial_gradients(partial, parallel_state.get_tensor_model_parallel_group())
    gradients = {
        f"{index}.{name}": parameter.grad
        for index, module in enumerate(modules)
        for name, parameter in module.named_parameters()
        if shard_dim(parameter) is None
    }
    return {"output": state.encoder_hidden.detach(), "input": hidden.grad, "gradients": gradients, "counts": dict(counts)}


def difference(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float]:
    def relative(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() / b.norm())

    of_gradients = [relative(gradient, second["gradients"][name]) for name, gradient in first["gradients"].items()]
    return {
        "output": relative(first["output"], second["output"]),
        "input_gradient": relative(first["input"], second["input"]),
        "replicated_gradients": float(torch.tensor(of_gradients).max()),  # NaN if one is: Python's max would pass over it
    }


def main() -> None:
    output = Path(sys.argv[1])
    torch.set_num_threads(1)
    cases = [("batch", 8, 0), ("columns", 3, 0), ("mixed_batch", 4, 1)]
    for tensor_parallel in (2, 4):
        mesh = join(MeshConfig(tensor_parallel=tensor_parallel))
        for form, micro_batch, attending in cases:
            config = layers(attending)
            whole = run(config, 1, micro_batch)
            ours = run(config, tensor_parallel, micro_batch)
            record = {"difference": difference(ours, whole), "counts": ours["counts"], "whole_counts": whole["counts"]}
            if form != "columns":
                record["planted"] = difference(run(config, tensor_parallel, micro_batch, sum_partial=False), whole)
            records: list[Any] = [None] * mesh.world_size
            torch.distributed.all_gather_object(records, record)
            if mesh.is_main:
                (output / f"{tensor_parallel}_{form}.json").write_text(json.dumps(records))
    torch.distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
