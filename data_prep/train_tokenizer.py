"""Training a tokenizer on files: which part of a large corpus it sees, and why always the same part."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tokenizers import Tokenizer

from data_prep.inputs.records import Document, RecordReader
from data_prep.inputs.work_units import InputFile, expand, input_files
from data_prep.tokenizer import save_tokenizer, train_tokenizer

SAMPLE_BYTES = 200_000_000


def sample_texts(
    files: Sequence[InputFile],
    max_record_bytes: int,
    sample_bytes: int = SAMPLE_BYTES,
    keep: Callable[[Document, bytes], bool] = lambda document, text: True,
) -> Iterator[str]:
    """The first texts of every file, about `sample_bytes` of UTF-8 in all.

    Corpora are often one file a source, so files share the budget evenly; what small files leave goes to larger ones.
    `keep` sees a document and its text in UTF-8: it leaves out what is held out from training, or dropped.
    """
    smallest_first = sorted(files, key=lambda file: (file.bytes, file.index))
    for position, file in enumerate(smallest_first):
        share = sample_bytes // (len(smallest_first) - position)
        # A file that cannot be read is for the run to report, or to leave out.
        with suppress(OSError):
            for record in RecordReader(file.path, file.name, max_record_bytes):
                if share <= 0:
                    break
                if isinstance(record, Document):
                    text = record.text.encode("utf-8")
                    if keep(record, text):
                        share -= len(text)
                        sample_bytes -= len(text)
                        yield record.text


def train_tokenizer_on_files(
    globs: Sequence[str], vocab_size: int, output: Path, max_record_bytes: int = 256 * 2**20
) -> Tokenizer:
    """Train on a sample of the files that `globs` match and write `output`. Raises InputError, TokenizerError."""
    paths = expand(globs)
    files = input_files(paths, [None] * len(paths))
    tokenizer = train_tokenizer(sample_texts(files, max_record_bytes), vocab_size)
    save_tokenizer(tokenizer, output)
    return tokenizer
