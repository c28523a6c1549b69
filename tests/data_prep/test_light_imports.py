"""Importing all of data_prep loads neither torch, MLflow nor Ray, nor a package above it, so that CPU nodes start fast."""

import pkgutil
import subprocess
import sys

import data_prep


def test_data_prep_imports_no_heavy_package() -> None:
    modules = [module.name for module in pkgutil.walk_packages(data_prep.__path__, "data_prep.")]
    assert {"data_prep.prepare", "data_prep.readers.records"} <= set(modules)
    program = f"import {', '.join(modules)}; import sys; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in result.stdout.splitlines()}
    assert not loaded & {"torch", "mlflow", "ray", "megatron", "deepspeed", "transformers", "models", "pipeline", "launch"}
