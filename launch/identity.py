"""The start-up check that `models`, `pipeline` and `data_prep` are ours: other packages use these common names too."""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
PACKAGES = ("launch", "models", "pipeline", "data_prep")


class ForeignPackageError(ValueError):
    """A package of ours is hidden by another of the same name, or cannot be imported at all."""


def check_identity(home: Path = HOME, packages: tuple[str, ...] = PACKAGES) -> None:
    """Look up where an import would find each package, without importing it.

    Raises ForeignPackageError, which names the foreign path and the remedy, if one is outside the folder `home`.
    """
    for name in packages:
        found = _location(name)
        if found is None:
            raise ForeignPackageError(f"package {name!r} cannot be imported: install the project with `pip install -e .`")
        if found.parent != home:
            raise ForeignPackageError(
                f"package {name!r} would be imported from {found}, not from {home / name}: remove that folder from PYTHONPATH, "
                "uninstall the package that brought it, or start `fnet-t5` from an environment of its own"
            )


def _location(name: str) -> Path | None:
    """The folder (or single file) that `import name` would load."""
    try:
        spec = find_spec(name)
    except ValueError:  # already in sys.modules without a spec, as an embedding program may leave it
        spec = PathFinder.find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None
