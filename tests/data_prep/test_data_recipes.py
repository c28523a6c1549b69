"""The recipes of published corpora, loaded as the command line loads them."""

import re
from pathlib import Path

import orjson
import pytest

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import load_manifest
from data_prep.filters.pile import COMPONENTS
from data_prep.prepare import prepare
from launch.config import load_config
from launch.recipes import packaged_recipes

# Table 1 of the paper (arXiv 2101.00027), spelled as in the published shards.
_PILE = [
    "Pile-CC",
    "PubMed Central",
    "Books3",
    "OpenWebText2",
    "ArXiv",
    "Github",
    "FreeLaw",
    "StackExchange",
    "USPTO Backgrounds",
    "PubMed Abstracts",
    "Gutenberg (PG-19)",
    "OpenSubtitles",
    "Wikipedia (en)",
    "DM Mathematics",
    "Ubuntu IRC",
    "BookCorpus2",
    "EuroParl",
    "HackerNews",
    "YoutubeSubtitles",
    "PhilPapers",
    "NIH ExPorter",
    "Enron Emails",
]
_REMOVED = {"Books3", "BookCorpus2", "OpenSubtitles", "YoutubeSubtitles", "OpenWebText2"}


def _load(name: str, **given: object) -> PrepareConfig:
    return load_config(PrepareConfig, f"data/{name}", [], {"input": ["raw/*.jsonl.zst"], "output": Path("out"), **given})


@pytest.mark.parametrize("recipe", [name for name in packaged_recipes() if name.startswith("configs/data/")])
def test_every_recipe_loads(recipe: str) -> None:
    config = load_config(PrepareConfig, recipe, [], {"input": ["x.jsonl"], "output": Path("out")})
    assert config.packing.lengths == [640]


def test_recipes_exclude_the_documented_sources() -> None:
    assert not _load("pile").exclude_sources
    assert not _load("pile").deduplicate
    assert _load("pile_english").exclude_sources == ["EuroParl"]
    assert _load("pile_english").language is None
    uncopyrighted = _load("pile_uncopyrighted")
    assert set(uncopyrighted.exclude_sources) == _REMOVED
    assert len(set(_PILE) - _REMOVED) == 17
    assert uncopyrighted.expected_sources == "pile"
    assert sorted(COMPONENTS) == sorted(_PILE)


def test_the_documented_filters_are_valid_settings(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "configs" / "data" / "pile_english.yaml"
    on = tmp_path / "english.yaml"
    on.write_text(re.sub(r"^# (language: )", r"\1", recipe.read_text(), flags=re.MULTILINE))
    language = load_config(PrepareConfig, str(on), [], {"input": ["x"], "output": Path("out")}).language
    assert language is not None
    assert "en" in language.keep


def test_missing_components_are_named(ray: None, tokenizer_file: Path, tmp_path: Path) -> None:
    here = [name for name in _PILE if name not in {"Books3", "PhilPapers", "OpenWebText2"}]
    records = [{"text": f"text of {name}", "meta": {"pile_set_name": name}} for name in here]
    (tmp_path / "x.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    shares = ["val_share=0", "test_share=0"]
    given = {"input": [f"{tmp_path}/x.jsonl"], "output": tmp_path / "out", "tokenizer": tokenizer_file}
    prepare(load_config(PrepareConfig, "data/pile_uncopyrighted", shares, given))
    manifest = load_manifest(tmp_path / "out")
    assert len(manifest.splits["train"].sources) == 16
    (note,) = manifest.notes
    assert note == (
        "6 of 22 expected sources are missing: Books3, OpenWebText2, OpenSubtitles (1 documents excluded by name), "
        "BookCorpus2 (1 documents excluded by name), YoutubeSubtitles (1 documents excluded by name), PhilPapers"
    )
