"""The settings of a preparation run, validated before any input is read."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

PackingMethod = Literal["best_fit", "concatenate", "document"]


class PackingConfig(BaseModel):
    """How documents are packed into rows: one row index per length (in tokens) and split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lengths: Annotated[list[PositiveInt], Field(min_length=1)] = [640]
    """Row lengths in tokens, each with a row index of its own."""
    method: PackingMethod = "best_fit"
    """best_fit: whole documents, packed by best fit; concatenate: documents back to back, cut at the row length; document: one
    document per row."""

    @field_validator("lengths")
    @classmethod
    def _distinct(cls, lengths: list[int]) -> list[int]:
        if len(set(lengths)) != len(lengths):
            raise ValueError(f"packing.lengths has a length twice: {lengths}; remove one")
        return sorted(lengths)


class SourceMixtureConfig(BaseModel):
    """How often training reads each source. Exactly one of `epochs` and `weights` is set, both are tables by source.

    `epochs` is the number of times that a source is read; a source that is not in the table is read once. `weights` are
    shares of bytes, from which epochs are computed; the table must have every source. "pile" stands for The Pile's official
    table of 22 sources. With weights, no source is read more than `max_epochs` times: up to 4 repetitions are nearly as
    good as new text (Muennighoff et al. 2023, arXiv 2305.16264).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: dict[str, Annotated[float, Field(ge=0, le=200)]] | Literal["pile"] | None = None
    """How often each source is read, by source, or `pile`."""
    weights: dict[str, Annotated[float, Field(gt=0)]] | Literal["pile"] | None = None
    """Share of bytes of each source, by source, or `pile`."""
    max_epochs: Annotated[float, Field(gt=0, le=200)] = 4
    """Most repetitions of a source under `weights`."""

    @model_validator(mode="after")
    def _validate_one_table(self) -> "SourceMixtureConfig":
        if (self.epochs is None) == (self.weights is None):
            raise ValueError("mixture takes either epochs or weights: a table by source, or `pile` for the official one")
        return self

    @property
    def is_official(self) -> bool:
        """True for the mixture that The Pile's authors published."""
        return "pile" in (self.epochs, self.weights)


class LanguageConfig(BaseModel):
    """Keep only documents in one of the languages `keep`, as py3langid detects them from the first `first_characters`.

    Languages are py3langid's codes: "en", "fr", …; "zxx" for text that is no language (numbers, much code); "und" if the
    confidence is below `min_confidence`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: Annotated[list[str], Field(min_length=1)]
    """Codes of the languages to keep."""
    first_characters: PositiveInt = 1000
    """Characters of a document that the language is detected from."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Confidence from 0 to 1 below which the language is "und"."""


class DecontaminateConfig(BaseModel):
    """Drop training documents that share `ngram` consecutive words with any record of the files in `against`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    against: Annotated[list[str], Field(min_length=1)]
    """Files, globs or URLs of the evaluation records."""
    ngram: PositiveInt = 13
    """Number of consecutive words that count as shared text."""


class PrepareConfig(BaseModel):
    """All settings of `prepare`: what to read, how to tokenize and pack it, where to write, and with how many processes.

    - `input`, `val` and `test` are globs, URLs or datasets. If `val` or `test` is given, files decide the split. Otherwise a
      hash of each document's text and `seed` sends `val_share` and `test_share` of the documents to val and test.
    - With `base`, the documents of a finished folder come first, and only files that it does not have are read.
    - Without `tokenizer`, one with `vocab_size` ids is trained on the input.
    - `workers`, `ray_address`, `unit_bytes`, `engine`, `max_worker_bytes`, `max_wait_seconds` and
      `max_bad_share` do not change the output.
    - `on_unreadable: skip` skips files that cannot be read or that change during the job.
    - `deduplicate` keeps one copy of each text, in a held-out split if one of the copies is there.
    - `mixture` repeats or thins out the sources of the training split.
    - `expected_sources` (or "pile" for its 22): a source in the list without a kept document is reported.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Annotated[list[str], Field(min_length=1)]
    """Files, globs, URLs or data sets to read the text from."""
    val: list[str] = []
    """Files, globs, URLs or data sets of the validation split. Default: a hash of each document's text decides."""
    test: list[str] = []
    """Files, globs, URLs or data sets of the test split. Default: a hash of each document's text decides."""
    output: Path
    """Dataset folder to write."""
    base: Path | None = None
    """Finished dataset folder to add the input to: the new folder begins with its documents, and only files that it does not
    have are read. It is not changed. Default: start from nothing."""
    tokenizer: Literal["bytes"] | Path | None = None
    """tokenizer.json to use, or `bytes` for the byte tokenizer of `fnet-t5 tokenizer bytes`. Default: a byte-level BPE with
    `vocab_size` ids is trained on the input."""
    vocab_size: PositiveInt = 32000
    """Number of ids of the tokenizer that is trained."""
    workers: PositiveInt = 1
    """Worker processes."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of the split and of sampling."""
    ray_address: str | None = None
    """Address of a Ray cluster to run on. Default: Ray is started on this machine."""
    packing: PackingConfig = PackingConfig()
    """How documents are packed into rows."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of quarantined records above which the job fails."""
    max_record_bytes: PositiveInt = 256 * 2**20
    """Longest record in bytes; longer ones are quarantined."""
    unit_bytes: Annotated[int, Field(gt=0, le=256_000_000)] = 64_000_000
    """Bytes of input in one unit of work."""
    max_worker_bytes: PositiveInt = 2 * 2**30
    """Memory of a worker in bytes above which it is restarted between two units."""
    max_wait_seconds: PositiveInt = 1800
    """Seconds to wait for the first worker of a busy Ray cluster before the job fails."""
    engine: Literal["auto", "reference"] = "auto"
    """Tokenizer engine. auto: the fastest that gives the same ids; reference: Hugging Face tokenizers."""
    on_unreadable: Literal["fail", "skip"] = "fail"
    """What to do with a file that cannot be read or that changes during the job: fail or skip it."""
    include_sources: list[str] | None = None
    """Sources to keep. Default: all."""
    exclude_sources: list[str] = []
    """Sources to drop."""
    expected_sources: list[str] | Literal["pile"] = []
    """Sources, or `pile` for The Pile's 22, whose absence from the result is reported."""
    language: LanguageConfig | None = None
    """Filter by language. Default: off."""
    decontaminate: DecontaminateConfig | None = None
    """Filter by overlap with evaluation data. Default: off."""
    deduplicate: bool = False
    """Whether only one copy of each exactly equal text is kept, in a held-out split if one of the copies is there."""
    mixture: SourceMixtureConfig | None = None
    val_share: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """Share of documents that the hash sends to the validation split."""
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """Share of documents that the hash sends to the test split."""

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _named_tokenizer(cls, given: Any) -> Any:
        """`--tokenizer bytes` arrives as a path. A file of this name in the working directory needs its absolute path."""
        return "bytes" if given == Path("bytes") else given

    @model_validator(mode="after")
    def _validate_shares(self) -> "PrepareConfig":
        if self.val_share + self.test_share >= 1:
            raise ValueError(
                f"val_share {self.val_share} and test_share {self.test_share} leave no document for training: "
                "their sum must be below 1"
            )
        return self

    @property
    def splits_by_hash(self) -> bool:
        """True if a hash of each document, not its file, decides the split."""
        return not self.val and not self.test

    def identity(self) -> dict[str, Any]:
        """The settings that output bytes depend on, as JSON values.

        Input files and the tokenizer are not here: the manifest records their hashes. `filters.rules.FilterPlan` adds what
        the filters depend on.
        """
        decisions: dict[str, Any] = {
            "seed": self.seed,
            "packing": self.packing.model_dump(),
            "max_record_bytes": self.max_record_bytes,
            "split": "hash" if self.splits_by_hash else "files",
            "tokenizer": "given" if self.tokenizer else "trained",
            "include_sources": sorted(self.include_sources) if self.include_sources is not None else None,
            "exclude_sources": sorted(self.exclude_sources),
            "deduplicate": self.deduplicate,
            "mixture": self.mixture.model_dump() if self.mixture else None,
        }
        if self.splits_by_hash:
            decisions |= {"val_share": self.val_share, "test_share": self.test_share}
        if not self.tokenizer:
            decisions["vocab_size"] = self.vocab_size
        return decisions
