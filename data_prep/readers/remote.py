"""Files behind a URL, read through fsspec: globs, change tokens, and reads up to the announced size.

A broken connection is reopened at the byte where it stopped. If that fails too, an error names the URL; it is never treated
as the end of the file.
"""

import io
import logging
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from data_prep.readers.formats import HEAD_BYTES, SUFFIXES, looks_like
from data_prep.retry import RetryPolicy, Wait, retried

URL = re.compile(r"(?:[A-Za-z0-9+.\-]+::)*[A-Za-z][A-Za-z0-9+.\-]*://")

# For tries without a new byte in between.
_POLICY = RetryPolicy()
_CONNECT_SECONDS = 30
_SILENCE_SECONDS = 30
_BLOCK_BYTES = 8 << 20
_BUFFER_BYTES = 1 << 20
_THREADS = 8
_LOGGER = logging.getLogger(__name__)
# By name, because aiohttp is imported late. A certificate or an address that is wrong now is wrong later.
_FINAL_ERRORS = ("TooManyRedirects", "InvalidURL", "ClientConnectorCertificateError", "NonHttpUrlClientError")

# Fields of fsspec's `info` that change with the bytes. The token is made of the first group of which a field is present.
_CHECKSUMS = ("ETag", "etag", "md5Hash", "crc32c", "generation", "content_md5", "Content-MD5", "Digest", "blob_id", "lfs")
_TIMES = ("Last-Modified", "LastModified", "last_modified", "updated", "modified", "mtime", "created")

_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp",
    "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "adl": "adlfs", "oci": "ocifs", "oss": "ossfs", "sftp": "paramiko",
    "ssh": "paramiko", "webhdfs": "requests", "hdfs": "pyarrow", "smb": "smbprotocol", "gdrive": "gdrivefs",
}  # fmt: skip

_Result = TypeVar("_Result")


class RemoteError(OSError, ValueError):
    """A URL that cannot be listed, described or read: `what` names it and the answer; the message also has the remedy."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what


@dataclass(frozen=True)
class RemoteFile:
    """One file behind a URL. `ranges`: its size is known and reading can start at any byte."""

    url: str
    ranges: bool

    def __str__(self) -> str:
        return public_url(self.url)

    @property
    def name(self) -> str:
        """The last part of the path, without a query; its ending gives the format."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def parts(self) -> tuple[str, ...]:
        """Scheme and host, then the folders, then the name."""
        url = urlsplit(public_url(self.url))
        return (f"{url.scheme}://{url.netloc}", *(part for part in url.path.split("/") if part))

    def state(self) -> tuple[int | None, str]:
        """Size in bytes (None if the server does not give it) and a token that changes with the bytes ("" if none is given)."""
        info = _info(self.url)
        size = info.get("size")
        return (int(size) if size is not None else None), _token(info)

    def open(self) -> BinaryIO:
        """A binary reader, seekable if `ranges`. Raises RemoteError, here and at every read."""
        return io.BufferedReader(_Reader(self), _BUFFER_BYTES)


def public_url(url: str) -> str:
    """A URL as messages and outputs show it: without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def expand_url(pattern: str) -> list[RemoteFile]:
    """The files that a URL with or without wildcards names; empty if none matches. Raises RemoteError."""
    fs, path = _filesystem(pattern)
    web = _is_web(pattern)
    if not any(sign in path for sign in ("*[" if web else "*?[")):  # in a web address "?" begins the query
        if not web and _info(pattern).get("type") == "directory":
            raise RemoteError(
                f"{public_url(pattern)}: a folder; name the files in it, as {public_url(pattern).rstrip('/')}/*.jsonl.zst"
            )
        # In the form in which a glob returns it.
        urls = [pattern if web else fs.unstrip_protocol(path)]
    else:
        fs.invalidate_cache()
        found = _retried(pattern, lambda: fs.glob(path, detail=True))
        urls = sorted(fs.unstrip_protocol(name) for name, info in found.items() if info.get("type") != "directory")
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(_described, urls))


def _described(url: str) -> RemoteFile:
    file = RemoteFile(url, ranges=False)
    info = _info(url)
    if info.get("mimetype") == "text/html" and file.name.lower().endswith(SUFFIXES):
        with file.open() as opened:
            kind = looks_like(opened.read(HEAD_BYTES))
        if kind == "an HTML page":
            raise RemoteError(f"{file}: the server answered with an HTML page, not with the file", "check the URL in a browser")
    has_size = info.get("size") is not None
    return RemoteFile(url, ranges=has_size and (not _is_web(url) or _takes_ranges(url)))


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _takes_ranges(url: str) -> bool:
    """Request one byte from the server: its own announcement is often missing and sometimes wrong."""
    from fsspec.asyn import sync

    fs, path = _filesystem(url)

    async def ask() -> bool:
        session = await fs.set_session()
        async with session.get(fs.encode_url(path), headers={"Range": "bytes=0-0"}) as response:
            return bool(response.status == 206)

    return _retried(url, lambda: sync(fs.loop, ask))


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem and the path in it. Settings come from fsspec's configuration files and variables."""
    import fsspec  # imported late: local files do not need it

    if "::" in url:
        raise RemoteError(f"{public_url(url)}: chained URLs are not read; unpack or download the files first")
    scheme = url.partition("://")[0].lower()
    options: dict[str, Any] = {}
    try:
        if scheme in ("http", "https"):
            options["client_kwargs"] = _web_client(fsspec.config.conf.get(scheme, {}).get("client_kwargs", {}))
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        remedy = f"pip install {package}" if package else f"install the package that it needs ({error})"
        raise RemoteError(f"{public_url(url)}: {scheme}:// needs a driver that is not installed; {remedy}") from error
    except ValueError as error:
        raise RemoteError(
            f"{public_url(url)}: fsspec knows no scheme {scheme}:// ({error}); install the package that brings it, "
            "e.g. pip install s3fs for s3://, gcsfs for gs://, adlfs for abfs://"
        ) from error
    return fs, path


def _web_client(configured: dict[str, Any]) -> dict[str, Any]:
    import aiohttp

    return {
        # The default stops every response after 5 minutes, and unpacks .gz files that a server declares as encoded.
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS),
        "auto_decompress": False,
        "headers": {"Accept-Encoding": "identity"},
        **configured,
    }


def _info(url: str) -> dict[str, Any]:
    fs, path = _filesystem(url)

    def ask() -> dict[str, Any]:
        fs.invalidate_cache()  # an old listing would hide a change
        return dict(fs.info(path))

    return _retried(url, ask)


def _token(info: dict[str, Any]) -> str:
    for names in (_CHECKSUMS, _TIMES):
        found = [f"{name}={info[name]}" for name in names if info.get(name)]
        if found:
            return " ".join(found)
    return ""


def has_checksum(version: str) -> bool:
    """True if a version is a checksum of the bytes and no time."""
    return version.partition("=")[0] in _CHECKSUMS


def _retried(url: str, action: Callable[[], _Result]) -> _Result:
    """The result of `action`, retried if that may help. Raises RemoteError, which names the URL."""

    def on_wait(wait: Wait) -> None:
        _LOGGER.warning("%s; try %d follows in %.0f s", _as_error(url, wait.error).what, wait.tries + 1, wait.seconds)

    try:
        return retried(action, _POLICY, _is_final, _retry_after, on_wait)
    except Exception as error:  # drivers raise errors without a common class
        raise _as_error(url, error) from error


def _causes(error: BaseException) -> Iterable[BaseException]:
    """The error and its causes: fsspec reports every error of a web server as a missing file."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _status(error: BaseException) -> int | None:
    found = (getattr(cause, "status", None) for cause in _causes(error))
    return next((status for status in found if isinstance(status, int) and status >= 100), None)


def _retry_after(error: BaseException) -> str | None:
    """The header of that name in the answer of a web server."""
    for cause in _causes(error):
        headers = getattr(cause, "headers", None)
        if headers is not None and headers.get("Retry-After"):
            return str(headers["Retry-After"])
    return None


def _is_final(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 425, 429)
    if any(isinstance(cause, PermissionError | RemoteError | ImportError) for cause in _causes(error)):
        return True
    if any(type(cause).__name__ in _FINAL_ERRORS for cause in _causes(error)):
        return True
    return isinstance(error, FileNotFoundError | IsADirectoryError) and error.__cause__ is None


def _as_error(url: str, error: BaseException) -> RemoteError:
    if isinstance(error, RemoteError):
        return error
    *_, root = _causes(error)
    status = _status(error)
    kind = type(root).__name__
    remedy = "check the network"
    if status in (401, 403) or isinstance(root, PermissionError) or "Credentials" in kind:
        what = f"access denied ({status or str(root) or kind})"
        remedy = "check the credentials of this scheme's driver"
    elif status in (404, 410) or (isinstance(root, FileNotFoundError) and status is None):
        what, remedy = f"no such file{f' ({status})' if status else ''}", "check the spelling"
    elif status == 429:
        what, remedy = "the server refuses so many requests (429)", "wait, or use fewer workers"
    elif status is not None:
        owner = "the server has a fault" if status >= 500 else "the server refuses the request"
        what, remedy = f"{owner} ({status})", "ask its operator, or download the file another way"
    elif kind == "TooManyRedirects":
        what, remedy = "the server redirects in a circle", "check the URL in a browser: it may need a login"
    elif isinstance(root, TimeoutError) or "Timeout" in kind:
        what = "no answer in time"
    else:
        # Without the queries of URLs, which may be secret.
        reason = " ".join(re.sub(r"\?[^\s'\"]*", "", str(root).replace(url, public_url(url))).split())
        what = f"{kind}: {reason}" if reason else f"the connection failed ({kind})"
    return RemoteError(f"{public_url(url)}: {what}", remedy)


class _Reader(io.RawIOBase):
    """Reopens broken connections; an end before the announced size counts as a broken connection."""

    def __init__(self, file: RemoteFile) -> None:
        self._url = file.url
        self._ranges = file.ranges
        self._size, _ = file.state()
        self._position = 0
        self._connection: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._ranges

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self._ranges or self._size is None:
            raise io.UnsupportedOperation(f"{public_url(self._url)}: the server sends the file only from its beginning")
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position != self._position and self._connection is not None:
            self._connection.seek(position)
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        if self._size is not None and self._position >= self._size:
            return 0
        data = _retried(self._url, lambda: self._read_or_disconnect(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _read_or_disconnect(self, num_bytes: int) -> bytes:
        try:
            return self._read(num_bytes)
        except BaseException:
            self._disconnect()
            raise

    def _read(self, num_bytes: int) -> bytes:
        if self._connection is None:
            self._connection = self._connect()
        data: bytes = self._connection.read(num_bytes)
        if not data and self._size is not None:
            raise EOFError(f"the connection ended after {self._position} of {self._size} bytes")
        return data

    def _connect(self) -> Any:
        """A connection at the current position: opened there, or read from the beginning up to there."""
        fs, path = _filesystem(self._url)
        if self._ranges:
            connection = fs.open(path, "rb", block_size=_BLOCK_BYTES)
            connection.seek(self._position)
            return connection
        connection = fs.open(path, "rb", block_size=0) if _is_web(self._url) else fs.open(path, "rb")
        passed = 0
        while passed < self._position:
            data = connection.read(min(_BUFFER_BYTES, self._position - passed))
            if not data:
                raise EOFError(f"the connection ended after {passed} of {self._size or 'unknown'} bytes")
            passed += len(data)
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
