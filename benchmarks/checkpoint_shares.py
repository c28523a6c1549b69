"""What one rank does at a save and at a start: time and memory by the size of the model and the number of ranks that share it.

    python benchmarks/checkpoint_shares.py --megabytes 64 256 1024 --ranks 1 8

Each case is a process of its own: it takes the share of the first rank of a mesh of `ranks` replicas of a model in bf16 (a part
of the weights, and of 12 bytes of optimizer state for each parameter), writes, syncs and hashes it. It prints CPU seconds, that
other processes of the machine hardly change, and the peak of memory above that of the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_TENSOR_BYTES = 8 << 20


def measure(megabytes: int, ranks: int) -> dict[str, float]:
    """One case, in this process. `megabytes`: of weights in bf16."""
    import torch
    from safetensors.torch import save_file

    from pipeline.checkpoint import checkpoint as saving
    from pipeline.run_folder import hash_file

    saving._SHARE_BYTES = (megabytes << 20) // ranks  # as a large model, whose parts are 512 MiB
    torch.distributed.all_reduce = lambda totals: totals.fill_(megabytes << 20)  # type: ignore[assignment]
    numel = _TENSOR_BYTES // 2
    entries = [
        SimpleNamespace(
            name=f"w{number}",
            is_copy=False,
            shard_dim=None,
            full_shape=(numel,),
            parameter=torch.ones(numel, dtype=torch.bfloat16),
        )
        for number in range((megabytes << 20) // _TENSOR_BYTES)
    ]
    stages: Any = SimpleNamespace(canonical_parameters=lambda: entries)
    mesh: Any = SimpleNamespace(
        pipeline_parallel=1,
        pipeline_rank=0,
        data_parallel=ranks,
        data_rank=0,
        tensor_parallel=1,
        tensor_rank=0,
        device=torch.device("cpu"),
    )
    state = torch.ones(6 * (megabytes << 20) // ranks // 4)  # 12 bytes for each parameter of two bytes
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "weights", Path(folder) / "state"]
        weights, _ = saving.gather_share(stages, mesh)
        save_file({name: value.clone() for name, value in weights.items()}, files[0])  # on a GPU they come to the host
        save_file({"state": state}, files[1])
        written = time.process_time()
        for path in files:
            saving._fsync(path)
            hash_file(path)
        hashed = time.process_time()
        size = sum(path.stat().st_size for path in files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bytes": size, "write": written - begin, "hash": hashed - written, "memory": 1024 * (peak - before)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 256, 1024], help="weights of the model")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8], help="replicas that share the work")
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*options.case)))
        return
    print("| weights, MB | ranks | this rank writes, MB | write, CPU s | hash, CPU s | memory above the model, MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for megabytes in options.megabytes:
        for ranks in options.ranks:
            program = [sys.executable, __file__, "--case", str(megabytes), str(ranks)]
            printed = subprocess.run(program, check=True, capture_output=True, text=True).stdout
            found = json.loads(printed.splitlines()[-1])  # libraries print at their import
            print(
                f"| {megabytes} | {ranks} | {found['bytes'] / 2**20:,.0f} | {found['write']:.2f} | {found['hash']:.2f} | "
                f"{found['memory'] / 2**20:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
