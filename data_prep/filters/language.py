"""Which language a text is in, by its start: for the filter that keeps some languages and counts the rest.

py3langid (an optional extra) knows 139 languages by their ISO codes, and two more answers: "zxx" for what is no language
(numbers, markup, much program code) and "und" where it is less sure than asked for.
"""

from functools import lru_cache
from importlib.metadata import version
from typing import Any

from data_prep.config import LanguageConfig

UNDETERMINED = "und"


class LanguageError(ValueError):
    """A language filter that cannot work: its library is missing, or a code is unknown to it."""


def check_filter(config: LanguageConfig) -> str:
    """The name and version of the library that will decide. Raises LanguageError."""
    known = {*_identifier(config.min_confidence).labels, UNDETERMINED}
    unknown = sorted(set(config.keep) - known)
    if unknown:
        raise LanguageError(f"language.keep: unknown codes {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return f"py3langid {version('py3langid')}"


def language_of(text: str, config: LanguageConfig) -> str:
    """The code of the language of the first `config.first_characters` characters. Raises LanguageError."""
    code: str = _identifier(config.min_confidence).classify(text[: config.first_characters])[0]
    return code


@lru_cache(maxsize=1)
def _identifier(min_confidence: float) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # late: a second, and an optional extra
    except ImportError as error:
        raise LanguageError("language: the filter needs py3langid; pip install 'fnet-t5[language]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=min_confidence or None)
