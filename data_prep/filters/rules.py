"""The optional filters of a run: checked before any input is read, then applied to every document.

Filters by source and language drop documents from every split. Decontamination drops documents from the training split
only, so that evaluation data does not depend on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.config import LanguageConfig, PrepareConfig
from data_prep.files import canonical_json, sha256_bytes
from data_prep.filters.decontaminate import build, cached_references, identity, notes, reference_files
from data_prep.filters.language import check_filter, language_of
from data_prep.readers.records import Document


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The filters that every unit applies. `references`: a folder that all workers share, and the hash of its content."""

    include_sources: frozenset[str] | None = None
    exclude_sources: frozenset[str] = frozenset()
    language: LanguageConfig | None = None
    references: tuple[Path, str] | None = None

    def why_dropped(self, document: Document) -> str | None:
        """The reason to drop a document from any split, or None to keep it."""
        source = document.source
        if source in self.exclude_sources or (self.include_sources is not None and source not in self.include_sources):
            return f"source {source}"
        if self.language:
            code = language_of(document.text, self.language)
            if code not in self.language.keep:
                return f"language {code}"
        return None

    def contaminated(self, texts: Sequence[bytes]) -> dict[int, str]:
        """The training texts (UTF-8) to drop, by number, with the reason."""
        if self.references is None:
            return {}
        matches = cached_references(*self.references).matches(texts)
        return {number: f"contaminated by {name}" for number, name in matches.items()}


class FilterPlan:
    """The checked filters of a run. `decisions`: all settings that outputs depend on, those of the configuration included.

    Raises LanguageError and InputError.
    """

    def __init__(self, config: PrepareConfig) -> None:
        self._config = config
        self.decisions: dict[str, Any] = config.identity()
        # All except the references.
        self.filters = Filters(
            include_sources=frozenset(config.include_sources) if config.include_sources is not None else None,
            exclude_sources=frozenset(config.exclude_sources),
            language=config.language,
        )
        if config.language:
            self.decisions["language"] = {**config.language.model_dump(), "by": check_filter(config.language)}
        if config.decontaminate:
            self._files = reference_files(config.decontaminate.against)
            self.decisions["decontaminate"] = identity(self._files, config.decontaminate.ngram)

    def build(self, folder: Path) -> tuple[Filters, list[str]]:
        """Write what the filters need below `folder`; return the filters and remarks for the user."""
        against = self._config.decontaminate
        if against is None:
            return self.filters, []
        place = folder / "references"
        found = build(self._files, against.ngram, self._config.max_record_bytes, place)
        sha256 = sha256_bytes(canonical_json(self.decisions["decontaminate"]))
        return replace(self.filters, references=(place, sha256)), notes(found, against.ngram)
