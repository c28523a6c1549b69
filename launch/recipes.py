"""Finding a recipe: an existing path, or a file in the `configs` folder that is installed next to this package."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

# A sibling of `launch`, in a checkout and in an installation alike. Not looked up by the name `configs`: that folder has no
# __init__.py, so any installed package of this common name would hide it.
PACKAGED = Path(__file__).resolve().parent.parent / "configs"


def packaged_recipes() -> list[str]:
    """Every shipped recipe, as people name it: `configs/train/demo.yaml`, sorted."""
    return sorted(f"configs/{path.relative_to(PACKAGED).as_posix()}" for path in PACKAGED.rglob("*.yaml"))


def find_recipe(recipe: str | Path, kind: str = "") -> Path:
    """The file that `recipe` names: an existing path, or else a shipped recipe, with or without the leading `configs/`.

    Raises FileNotFoundError if there is neither; its message lists the shipped recipes, of one `kind` (their folder) if it
    is given.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("./")
    shipped = packaged_recipes()
    for candidate in (name, f"configs/{name}", f"configs/{name}.yaml"):
        if candidate in shipped:
            return PACKAGED.parent / candidate
    # Also compared without the folders: `train/dmeo.yaml` should still find `configs/train/demo.yaml`.
    shipped = [full for full in shipped if full.startswith(f"configs/{kind}")]
    spellings = {spelling: full for full in shipped for spelling in (full, full.removeprefix("configs/"), Path(full).name)}
    near = get_close_matches(name, spellings, n=1)
    hint = f"did you mean {spellings[near[0]]}?" if near else f"shipped recipes: {', '.join(shipped) or 'none'}"
    kind = "is a folder, not a recipe" if path.is_dir() else "does not exist"
    raise FileNotFoundError(f"{recipe} {kind}; {hint}")
