"""The wheel contains exactly the intended files; files for other services are valid."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

PACKAGES = ("data_prep", "launch", "models", "pipeline")


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel, built from a copy so that no build folder is left in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "configs"):
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "docs", "benchmarks", "examples"):  # must not be in the wheel
        (folder / name).mkdir()
        (folder / name / "module.py").write_text("")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, folder)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        "out",
        ".",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "out").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_wheel_is_typed(wheel: list[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel)


def test_the_wheel_has_only_the_packages_at_its_top_level(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {*PACKAGES, "configs"}


def test_the_wheel_contains_every_data_file(repository: Path, wheel: list[str]) -> None:
    for package in (*PACKAGES, "configs"):
        for path in (repository / package).rglob("*"):
            if path.suffix in (".j2", ".yaml"):
                assert path.relative_to(repository).as_posix() in wheel


def test_the_citation_names_this_version(repository: Path) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    project = (repository / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1] == citation["version"]  # type: ignore[index]
    assert re.search(r'^license = "(.+)"$', project, re.MULTILINE)[1] == citation["license"]  # type: ignore[index]


def test_the_workflow_runs_the_commands_of_developers(repository: Path) -> None:
    workflow = yaml.safe_load((repository / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert any(step.get("with", {}).get("python-version") == "3.11" for step in steps)


def test_pre_commit_hooks_use_the_projects_environment(repository: Path) -> None:
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    programs = {hook["entry"].split()[0] for hook in hooks["repos"][0]["hooks"]}
    assert programs == {".venv/bin/ruff", ".venv/bin/lint-imports"}


def test_issue_templates_are_valid_yaml(repository: Path) -> None:
    templates = sorted((repository / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(templates) >= 3
    for template in templates:
        assert isinstance(yaml.safe_load(template.read_text(encoding="utf-8")), dict)
