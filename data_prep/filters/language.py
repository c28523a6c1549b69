"""Language identification from the start of a text, for the filter that keeps some languages.

py3langid (an optional extra) knows 139 languages by their ISO codes. Two more codes are "zxx" for text that is no language
(numbers, markup, much program code) and "und" if the confidence is below the minimum.
"""

from functools import lru_cache
from importlib.metadata import version
from typing import Any

from data_prep.config import LanguageConfig

UNDETERMINED = "und"


class LanguageError(ValueError):
    """A language filter that cannot work: its library is missing, or it does not know a code."""


def check_filter(config: LanguageConfig) -> str:
    """Check the settings and return the name and version of the library. Raises LanguageError."""
    known = {*_identifier(config.min_confidence).labels, UNDETERMINED}
    unknown = sorted(set(config.keep) - known)
    if unknown:
        raise LanguageError(f"language.keep: unknown codes {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return f"py3langid {version('py3langid')}"


def language_of(text: str, config: LanguageConfig) -> str:
    """The language code of the first `config.first_characters` characters. Raises LanguageError."""
    code: str = _identifier(config.min_confidence).classify(text[: config.first_characters])[0]
    return code


@lru_cache(maxsize=1)
def _identifier(min_confidence: float) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # imported late: it takes a second and is optional
    except ImportError as error:
        raise LanguageError("language: the filter needs py3langid; pip install py3langid") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=min_confidence or None)
