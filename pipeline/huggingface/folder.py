"""Checkpoint folders in the format of Hugging Face: `config.json` beside safetensors (or an old `pytorch_model.bin`), whole or
in shards.

A `.bin` is read with `weights_only`, so it cannot run code. Only safetensors are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.files import write_json_atomically

_CONFIG, _SAFETENSORS, _BIN = "config.json", "model.safetensors", "pytorch_model.bin"


def read_config(folder: Path) -> dict[str, Any]:
    """The values of config.json. Raises ValueError if the folder has no readable one."""
    path = folder / _CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no {_CONFIG}: give a checkpoint folder in the format of Hugging Face")
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): download it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object: download it again")
    return values


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by its name, fp32, on the CPU. Raises ValueError if there are none or a shard is missing."""
    for name in (_SAFETENSORS, _BIN):
        index, single = folder / f"{name}.index.json", folder / name
        if index.is_file():
            files = [folder / part for part in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
        elif single.is_file():
            files = [single]
        else:
            continue
        tensors: dict[str, Tensor] = {}
        for file in files:
            if not file.is_file():
                raise ValueError(f"{file} is missing: {index.name} names it; download it too")
            tensors.update(_read(file))
        return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    raise ValueError(f"{folder} holds neither {_SAFETENSORS} nor {_BIN}: download one of them")


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors; a tensor with several names is written under each."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{_SAFETENSORS}.partial"
    partial.touch()
    mode = partial.stat().st_mode  # as the umask says; save_file gives its file to the owner alone
    # safetensors refuses tensors that share memory, such as tied ones
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, partial, {"format": "pt"})
    partial.chmod(mode)
    partial.replace(folder / _SAFETENSORS)
    write_json_atomically(folder / _CONFIG, dict(config))


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors
        raise ValueError(
            f"{file} cannot be read as plain tensors ({type(error).__name__}): convert it to safetensors"
        ) from error
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise ValueError(f"{file} holds other objects than tensors by name: convert it to safetensors")
    return values
