"""Real text that every machine with this program has: the Python installation and its packages, as seven kinds of document.

Only the standard library and site-packages are read, sorted by a hash of each relative path: the same installation gives the
same documents in the same order, and consecutive ones are of different packages.
"""

from __future__ import annotations

import ast
import email.parser
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from launch.identity import HOME, PACKAGES

MIN_CHARACTERS = 250
MAX_CHARACTERS = 20_000
_MAX_FILE_BYTES = 1_500_000
_MAX_LINE = 2_000
_MIN_LETTERS = 0.6
"""Smallest share of letters among characters other than white space: tables of numbers and escapes have fewer."""
_MIN_COMPRESSED = 0.08
"""Smallest compressed size per byte, by zlib: logs and listings, which repeat themselves, are smaller."""
_DOCSTRING_SHARE = 0.5
"""A module with more than this share of its text between triple quotes gives its docstrings, any other its code."""

# Tests and tables, binaries, and copies of other packages.
_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "encodings", "ensurepip"}
    | {"lib-dynload", "_vendor", "vendor", "vendored", "third_party", "thirdparty_files", "node_modules", "static"}
)
_SKIPPED_TEXTS = frozenset({"top_level.txt", "entry_points.txt", "SOURCES.txt", "requires.txt", "CMakeLists.txt"})
_LICENCE_NAME = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|AUTHORS|COPYRIGHT)", re.IGNORECASE)
_BADGE = re.compile(r"^.*(badge|shields\.io|/workflows/).*\n?", re.MULTILINE)
_GENERATED = re.compile(r"do not edit|@generated|(auto-?|automatically |code |file )generated|generated (by|from|using)", re.I)


@dataclass(frozen=True)
class Candidate:
    """One document, and the package (or topic) it comes from, so that no package dominates a kind."""

    group: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Installation:
    """The folders that may be read, and the paths that may not appear in any document."""

    stdlib: Path
    packages: tuple[Path, ...]
    private: tuple[str, ...] = ()
    own: frozenset[str] = field(default_factory=frozenset)
    """Top-level names in `packages` that are this project's."""

    @classmethod
    def current(cls) -> Installation:
        """That of the running interpreter.

        `private` holds the home folder and this project's folder: a text that contains them would identify the user.
        """
        paths = sysconfig.get_paths()
        packages = tuple(dict.fromkeys(Path(paths[name]) for name in ("purelib", "platlib")))
        private = {str(path) for path in (Path.home(), HOME, Path(sys.prefix)) if len(path.parts) > 1 and path != Path("/usr")}
        own = frozenset(PACKAGES) | {"configs"} if HOME in {path.resolve() for path in packages} else frozenset()
        return cls(stdlib=Path(paths["stdlib"]), packages=packages, private=tuple(sorted(private)), own=own)

    @cached_property
    def stdlib_files(self) -> list[SourceFile]:
        """Readable files of the standard library in hash order, without folders of tests and binaries."""
        return _files_below(self.stdlib, frozenset({"pydoc_data"}))

    @cached_property
    def package_files(self) -> list[SourceFile]:
        """Readable files of installed packages in hash order, without this project's own."""
        return [file for folder in self.packages for file in _files_below(folder, self.own)]


@dataclass(frozen=True)
class SourceFile:
    """A file of the installation; `name` is relative to the folder that was searched."""

    path: Path
    name: PurePosixPath

    @property
    def group(self) -> str:
        """The top-level package: `numpy` for `numpy/x.py` and for `numpy-2.0.dist-info/METADATA`."""
        return self.name.parts[0].partition("-")[0].removesuffix(".py").lower()

    @property
    def is_licence(self) -> bool:
        return _LICENCE_NAME.match(self.name.name) is not None and self.name.suffix not in (".py", ".js")

    @property
    def is_documentation(self) -> bool:
        readable = self.name.suffix in (".md", ".rst", ".txt") and ".js." not in self.name.name
        return readable and not self.is_licence and self.name.name not in _SKIPPED_TEXTS

    def read(self) -> str:
        """The text with Unix line ends; empty if it is not UTF-8, or too large to have been written by hand."""
        try:
            if self.path.stat().st_size > _MAX_FILE_BYTES:
                return ""
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""


def _files_below(folder: Path, left_out: frozenset[str]) -> list[SourceFile]:
    found: list[SourceFile] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name not in left_out and not name.startswith(("fnet_t5", "__editable__"))]
            names = [name for name in names if not name.startswith("__editable__")]
        below = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        found += [SourceFile(Path(parent, name), below / name) for name in names]
    return sorted(found, key=lambda file: hashlib.blake2b(str(file.name).encode("utf-8", "surrogateescape")).digest())


def python_documentation(installation: Installation) -> Iterator[Candidate]:
    """The language reference that `help("topic")` shows."""
    text = SourceFile(installation.stdlib / "pydoc_data" / "topics.py", PurePosixPath("topics.py")).read()
    tables = [node.value for node in ast.parse(text).body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    for table in tables:
        for topic, words in sorted(ast.literal_eval(table).items()):
            yield Candidate(topic, words)


def licences(installation: Installation) -> Iterator[Candidate]:
    for file in installation.stdlib_files + installation.package_files:
        if file.is_licence:
            yield Candidate(file.group, file.read())


def package_metadata(installation: Installation) -> Iterator[Candidate]:
    """Name, summary and description of every installed distribution: mostly its README."""
    for file in installation.package_files:
        if file.name.name == "METADATA":
            message = email.parser.Parser().parsestr(file.read())
            body = _BADGE.sub("", str(message.get_payload()))
            title = f"{message.get('Name', '')} {message.get('Version', '')}".strip()
            yield Candidate(file.group, f"{title}\n\n{message.get('Summary', '')}\n\n{body}")


def documentation(installation: Installation) -> Iterator[Candidate]:
    for file in installation.stdlib_files + installation.package_files:
        if file.is_documentation:
            yield Candidate(file.group, file.read())


def docstrings(installation: Installation) -> Iterator[Candidate]:
    """One document a module of prose: the name and docstring of everything documented in it, in source order."""
    for file in installation.package_files:
        if file.name.suffix == ".py" and _is_prose(text := file.read()):
            yield Candidate(file.group, _docstrings_of(text, ".".join(file.name.with_suffix("").parts)))


def package_source(installation: Installation) -> Iterator[Candidate]:
    for file in installation.package_files:
        if file.name.suffix == ".py" and not _is_prose(text := file.read()):
            yield Candidate(file.group, text)


def library_source(installation: Installation) -> Iterator[Candidate]:
    for file in installation.stdlib_files:
        # _sysconfigdata holds this machine's build paths.
        if file.name.suffix == ".py" and not file.name.name.startswith("_sysconfigdata"):
            yield Candidate(file.group, file.read())


KINDS: dict[str, tuple[float, Callable[[Installation], Iterator[Candidate]]]] = {
    "Python documentation": (0.08, python_documentation),
    "Licences": (0.06, licences),
    "Package metadata": (0.12, package_metadata),
    "Documentation": (0.10, documentation),
    "Docstrings": (0.32, docstrings),
    "Python standard library": (0.18, library_source),
    "Python packages": (0.14, package_source),
}
"""Each kind of source with its share of the corpus and the function that finds its documents. Prose first."""


def readable(text: str, private: tuple[str, ...] = ()) -> str | None:
    """`text` trimmed, and cut at the end of a line to MAX_CHARACTERS; None for text that a model should not learn from.

    That is short, generated, minified, numeric or repetitive text, broken Unicode, and text that contains a `private` path.
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        text = text[: text.rfind("\n", 0, MAX_CHARACTERS)].rstrip()
    if len(text) < MIN_CHARACTERS or "\x00" in text or "\ufffd" in text or any(path in text for path in private):
        return None
    if max(map(len, text.split("\n"))) > _MAX_LINE or _GENERATED.search(text, 0, 1000):
        return None
    num_letters = sum(map(str.isalpha, text))
    if num_letters < _MIN_LETTERS * (len(text) - sum(map(str.isspace, text))):
        return None
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:  # a docstring may contain half of a surrogate pair
        return None
    return text if len(zlib.compress(data, 1)) > _MIN_COMPRESSED * len(data) else None


def _is_prose(text: str) -> bool:
    return sum(map(len, text.split('"""')[1::2])) > _DOCSTRING_SHARE * len(text)


def _docstrings_of(text: str, module: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in others' code
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    title = module.removesuffix(".__init__")
    return "\n\n".join([title, *_documented(tree, "")])


def _documented(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    """Docstrings of `node` and of the definitions in it, each under its name; functions inside functions are skipped."""
    if own := ast.get_docstring(node):
        yield own
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            inner = list(_documented(child, f"{prefix}{child.name}."))
            if inner:
                yield "\n\n".join([f"class {prefix}{child.name}", *inner])
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and (words := ast.get_docstring(child)):
            arguments = ", ".join(argument.arg for argument in child.args.posonlyargs + child.args.args)
            yield f"{prefix}{child.name}({arguments})\n\n{inspect.cleandoc(words)}"
