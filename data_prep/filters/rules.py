"""The optional filters of a run: made ready and described before anything is read, then asked about every document.

Sources and languages leave documents out of every split. Decontamination only takes from training: what is held out is
not changed by what it is compared with, so give held-out files as references too where they should be kept apart.
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
    """What every unit asks. `references` is a folder that all workers see, and a hash of what lies there."""

    include_sources: frozenset[str] | None = None
    exclude_sources: frozenset[str] = frozenset()
    language: LanguageConfig | None = None
    references: tuple[Path, str] | None = None

    def why_dropped(self, document: Document) -> str | None:
        """The reason to leave a document out whatever its split, or None."""
        source = document.source
        if source in self.exclude_sources or (self.include_sources is not None and source not in self.include_sources):
            return f"source {source}"
        if self.language:
            code = language_of(document.text, self.language)
            if code not in self.language.keep:
                return f"language {code}"
        return None

    def contaminated(self, texts: Sequence[bytes]) -> dict[int, str]:
        """Reasons to leave training texts (UTF-8) out, by their numbers."""
        if self.references is None:
            return {}
        matches = cached_references(*self.references).matches(texts)
        return {number: f"contaminated by {name}" for number, name in matches.items()}


class FilterPlan:
    """The filters of a run before they are used: `decisions` are what outputs depend on, config included.

    Raises LanguageError, InputError and what reading references raises.
    """

    def __init__(self, config: PrepareConfig) -> None:
        self._config = config
        self.decisions: dict[str, Any] = config.identity()
        # All but the references.
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
        """The filters, what they need written below `folder`, and what a person should know of them."""
        against = self._config.decontaminate
        if against is None:
            return self.filters, []
        place = folder / "references"
        found = build(self._files, against.ngram, self._config.max_record_bytes, place)
        sha256 = sha256_bytes(canonical_json(self.decisions["decontaminate"]))
        return replace(self.filters, references=(place, sha256)), notes(found, against.ngram)
