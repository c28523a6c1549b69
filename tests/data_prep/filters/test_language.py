"""The language filter, on texts in an obvious language."""

import builtins
import importlib.util
from pathlib import Path

import orjson
import pytest
from tokenizers import Tokenizer

from data_prep.config import LanguageConfig, PrepareConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.filters import language
from data_prep.filters.language import LanguageError, check_filter, language_of
from data_prep.prepare import prepare

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("py3langid") is None, reason="the language filter needs py3langid: pip install py3langid"
)

_TEXTS = {
    "en": "The committee has decided to publish the report before the end of the year, although many members disagree with it.",
    "fr": "Le comité a décidé de publier le rapport avant la fin de l'année malgré plusieurs désaccords.",
    "de": "Der Ausschuss hat beschlossen, den Bericht vor Ende des Jahres zu veröffentlichen trotz vieler Gegenstimmen.",
    "ja": "委員会は年末までに報告書を公表することを決定したが、多くの委員はこれに反対している。",
}


def _config(folder: Path, tokenizer_file: Path) -> PrepareConfig:
    return PrepareConfig.model_validate(
        {
            "input": [f"{folder}/raw/*.jsonl"],
            "output": folder / "data",
            "tokenizer": tokenizer_file,
            "language": {"keep": ["en"]},
            "val_share": 0,
            "test_share": 0,
        }
    )


@needs_library
def test_other_languages_are_dropped_and_counted(ray: None, tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    lines = b"".join(orjson.dumps({"text": f"{text} ({number})"}) + b"\n" for number in range(3) for text in _TEXTS.values())
    (tmp_path / "raw" / "0.jsonl").write_bytes(lines)
    config = _config(tmp_path, tokenizer_file)
    manifest = prepare(config)
    assert manifest.dropped == {"language de": 3, "language fr": 3, "language ja": 3}
    data = TokenFile(config.output / "train")
    assert [tokenizer.decode(list(data[i][:-1])) for i in range(len(data))] == [f"{_TEXTS['en']} ({i})" for i in range(3)]
    assert manifest.config["language"]["by"].startswith("py3langid ")
    assert prepare(config) == manifest


@needs_library
def test_only_the_start_is_used_and_low_confidence_is_und() -> None:
    text = _TEXTS["en"] + "\n" + _TEXTS["fr"] * 50
    assert language_of(text, LanguageConfig(keep=["en"], first_characters=100)) == "en"
    assert language_of(text, LanguageConfig(keep=["en"], first_characters=5000)) == "fr"
    assert language_of("1 2 3", LanguageConfig(keep=["en"], min_confidence=0.9)) == "und"
    with pytest.raises(LanguageError, match=r"unknown codes english; known: .*en, "):
        check_filter(LanguageConfig(keep=["english", "en", "und"]))


def test_a_missing_library_is_reported_before_anything_is_read(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without(name: str, *arguments: object, **keywords: object) -> object:
        if name.startswith("py3langid"):
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    language._identifier.cache_clear()
    with pytest.raises(LanguageError, match=r"needs py3langid; pip install py3langid"):
        prepare(_config(tmp_path, tokenizer_file))
    assert not (tmp_path / "data").exists()
