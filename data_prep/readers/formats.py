"""What an input file is: by its name, which decides how it is read, and by its first bytes, which must agree."""

# Only files of plain lines can be cut into byte ranges.
PLAIN_SUFFIX = ".jsonl"
SUFFIXES = (PLAIN_SUFFIX, ".jsonl.zst", ".jsonl.gz", ".json.gz", ".jsonl.xz", ".parquet", ".txt")
HEAD_BYTES = 512

# First bytes of formats. No JSON text begins with any of them.
_MAGIC = (
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"\x1f\x8b", "gzip data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"BZh", "bzip2 data"),
    (b"\x04\x22\x4d\x18", "lz4 data"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"%PDF-", "a PDF document"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"version https://git-lfs.github.com/", "a Git LFS pointer (run `git lfs pull`)"),
)
_REMEDIES = {"zstd data": ".jsonl.zst", "gzip data": ".jsonl.gz", "xz data": ".jsonl.xz", "a Parquet file": ".parquet"}
ZSTD, GZIP, XZ = "zstd data", "gzip data", "xz data"


class WrongFormatError(OSError, ValueError):
    """A file that is not what its name says, or whose name says nothing."""


def looks_like(head: bytes) -> str | None:
    """What the first bytes of a file are, in words; None if they are like nothing known, such as JSON lines."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:100].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if start.startswith((b"<?xml", b"<error")):
        return "an XML document"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return None


def validate_lines(place: object, head: bytes) -> None:
    """Raise WrongFormatError if the first bytes of a `.jsonl` file are those of another format."""
    kind = looks_like(head)
    if kind is not None:
        name = _REMEDIES.get(kind)
        remedy = f"name it {name}" if name else "fetch the file again, or convert it to JSON lines"
        raise WrongFormatError(f"{place}: named {PLAIN_SUFFIX}, but it is {kind}: {remedy}")


def mismatch(head: bytes) -> str:
    """For a file that does not decode: what it is instead, as the end of a sentence; "" if nothing can be said."""
    kind = looks_like(head)
    if kind is not None:
        return f"; the file begins like {kind}"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not a character that is cut at the end
            return ""
    return "; the file begins like plain text" if head else ""


def unknown_name(place: object) -> WrongFormatError:
    """The error for a file whose name has no known suffix."""
    return WrongFormatError(f"{place}: cannot tell the format from the name; known endings: {', '.join(SUFFIXES)}")


def nothing_readable(path: object, detail: str) -> WrongFormatError:
    """The error for a file that does not decode from its start: all of its text would be lost. `detail`: the codec's words."""
    return WrongFormatError(f"{path}: nothing in it can be read: {detail}; fetch or write the file again")
