"""Inputs at URLs, read from a local web server with and without byte ranges, and with the errors of real downloads."""

import gzip
import hashlib
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.config import PrepareConfig
from data_prep.files import sha256_file
from data_prep.prepare import PrepareError, prepare
from data_prep.readers import remote
from data_prep.readers.blocks import num_ranges, read_range
from data_prep.readers.input_files import InputError, expand, plan
from data_prep.readers.locations import names, sha256_location
from data_prep.readers.remote import RemoteError, RemoteFile, expand_url, public_url
from data_prep.readers.streams import read_chunks
from data_prep.retry import RetryPolicy
from data_prep.units.job_progress import Progress


@dataclass
class Web:
    """A running server over a folder. `cuts`: how many of the next responses end early, after `cut_after` bytes.

    `failures`: status and headers of the next answers. `gzipped`: files are sent compressed, whatever the client accepts.
    """

    folder: Path
    ranges: bool = True
    cuts: int = 0
    cut_after: int = 20_000
    silent_seconds: float = 0
    sizes: bool = True
    encoding: str | None = None
    gzipped: bool = False
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)


@contextmanager
def serve(web: Web) -> Iterator[Web]:
    """Serve `web` on 127.0.0.1 until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = web.folder / self.path.partition("?")[0].lstrip("/")
            time.sleep(web.silent_seconds)
            if web.failures:
                status, answer = web.failures.pop(0)
                return self._send(status, b"", answer, body)
            if self.path.startswith("/circle"):
                return self._send(302, b"", {"Location": self.path}, body)
            if path.name.startswith("login"):
                return self._send(200, b"<!DOCTYPE html><html>Sign in</html>", {"Content-Type": "text/html"}, body)
            if path.is_dir():
                links = "".join(f'<a href="{entry.name}">{entry.name}</a>\n' for entry in sorted(path.iterdir()))
                return self._send(200, links.encode(), {"Content-Type": "text/html"}, body)
            if path.name.startswith("secret"):
                return self._send(403, b"", {}, body)
            if not path.is_file():
                return self._send(404, b"", {}, body)
            data = gzip.compress(path.read_bytes()) if web.gzipped else path.read_bytes()
            headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
            if web.gzipped:
                headers["Content-Encoding"] = "gzip"
            if web.encoding:
                headers["Content-Encoding"] = web.encoding
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            web.requests["range" if wanted and web.ranges else "whole"] += body
            if not wanted or not web.ranges:
                return self._send(200, data, headers, body)
            first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
            if first >= len(data):
                return self._send(416, b"", headers, body)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._send(206, data[first : last + 1], headers, body)

        def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if web.sizes:
                self.send_header("Content-Length", str(len(data)))
            else:
                self.close_connection = True
            self.end_headers()
            if not body:
                return
            if web.cuts > 0 and len(data) > web.cut_after:
                web.cuts -= 1
                web.requests["cut"] += 1
                data = data[: web.cut_after]
                self.close_connection = True
            try:
                self.wfile.write(data)
            except ConnectionError:
                self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: object) -> None:
            """Ignore clients that close the connection, which is part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def web(tmp_path: Path, corpus: Path) -> Iterator[Web]:
    """A server for a copy of the corpus in raw/, with an additional Parquet file."""
    shutil.copytree(corpus, tmp_path / "web" / "raw")
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(50)]}), tmp_path / "web" / "raw" / "3.parquet")
    with serve(Web(tmp_path / "web")) as web:
        yield web


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_POLICY", RetryPolicy(patience_seconds=0.5, first_wait=0.01, min_tries=6))


def _config(pattern: str, output: Path, tokenizer_file: Path, **kwargs: object) -> PrepareConfig:
    fields = {
        "input": [pattern],
        "output": output,
        "tokenizer": tokenizer_file,
        "val_share": 0.1,
        "test_share": 0.05,
        "max_bad_share": 0.01,
        "unit_bytes": 30_000,
        "workers": 2,
    }
    return PrepareConfig.model_validate({**fields, **kwargs})


def _data_hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.fixture(scope="module")
def local(ray: None, corpus: Path, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus without the Parquet file, prepared from local paths."""
    folder = tmp_path_factory.mktemp("local") / "data"
    prepare(_config(f"{corpus}/*.jsonl*", folder, tokenizer_file))
    return folder


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("ranges", [True, False])
def test_output_equals_that_of_the_same_files_on_disk(
    web: Web, local: Path, tokenizer_file: Path, tmp_path: Path, ranges: bool
) -> None:
    web.ranges = ranges
    web.cuts = 3
    config = _config(f"{web.url}/raw/*.jsonl*", tmp_path / "data", tokenizer_file)
    assert [file.is_plain for file in plan(config)] == [False, False, ranges]
    manifest = prepare(config)
    assert web.requests["cut"] == 3
    assert _data_hashes(tmp_path / "data") == _data_hashes(local)
    assert [(record.name, record.bytes, record.sha256) for record in manifest.inputs] == [
        (path.name, path.stat().st_size, sha256_file(path)) for path in sorted((web.folder / "raw").glob("*.jsonl*"))
    ]
    assert all(record.version and record.version.startswith("ETag=") for record in manifest.inputs)
    before = web.requests.copy()
    assert prepare(config) == manifest
    # Requests that check for range support are not downloads.
    assert web.requests["whole"] - before["whole"] <= 3 * (1 + (not ranges))
    (web.folder / "raw" / "2.jsonl").write_bytes(b"{}\n")
    with pytest.raises(PrepareError, match=r"another dataset: input 2\.jsonl has other bytes"):
        prepare(config)


@pytest.mark.usefixtures("ray")
def test_a_file_that_changes_fails_the_job_with_its_url(web: Web, local: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    def change(progress: Progress) -> None:
        if progress.stage == "tokenize" and progress.units_done == 0:
            (web.folder / "raw" / "2.jsonl").write_bytes(b'{"text": "new"}\n' * 10_000)

    config = _config(f"{web.url}/raw/2.jsonl", tmp_path / "data", tokenizer_file)
    with pytest.raises(PrepareError, match=rf"{web.url}/raw/2\.jsonl: changed during the job .* on_unreadable=skip"):
        prepare(config, change)
    with pytest.raises(PrepareError, match=r"input 2\.jsonl was \d+ bytes"):
        prepare(config)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_connection_that_stays_broken_fails_the_job_with_its_url(web: Web, tokenizer_file: Path, tmp_path: Path) -> None:
    web.cuts = 10_000
    config = _config(f"{web.url}/raw/1.jsonl.gz", tmp_path / "broken", tokenizer_file)
    web.cut_after = 1000
    with pytest.raises(PrepareError, match=rf"{web.url}/raw/1\.jsonl\.gz: .*(ended|payload|ontent)"):
        prepare(config)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_run_resumes_if_the_url_has_the_same_bytes(web: Web, local: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == "assemble train":
            raise KeyboardInterrupt

    config = _config(f"{web.url}/raw/*.jsonl*", tmp_path / "data", tokenizer_file)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt)
    assert prepare(config).retokenized_units == 0
    assert _data_hashes(tmp_path / "data") == _data_hashes(local)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("sizes", [True, False])
def test_every_byte_arrives_over_a_bad_connection(web: Web, ranges: bool, sizes: bool) -> None:
    data = bytes(i * i % 251 for i in range(300_000))
    (web.folder / "x.jsonl").write_bytes(data)
    web.ranges, web.sizes = ranges, sizes
    (file,) = expand_url(f"{web.url}/x.jsonl")
    assert file == RemoteFile(f"{web.url}/x.jsonl", ranges=ranges and sizes)
    # Without a size and without chunks, HTTP cannot distinguish a complete response from a truncated one.
    web.cuts = 3 if sizes else 0
    assert sha256_location(file) == hashlib.sha256(data).hexdigest()
    assert web.requests["cut"] == (3 if sizes else 0)


def test_ranges_give_the_blocks_of_the_local_file(web: Web) -> None:
    path = web.folder / "raw" / "2.jsonl"
    (file,) = expand_url(f"{web.url}/raw/2.jsonl")
    for index in range(num_ranges(path.stat().st_size, 7000)):
        there, here = (read_range(place, index, 7000, 1 << 20) for place in (file, path))
        assert there.data.tobytes() == here.data.tobytes()


def test_compressed_files_and_parquet_are_read_over_http(web: Web) -> None:
    web.encoding = "gzip"  # servers declare this for any .gz file; the client must not decompress it
    (file,) = expand_url(f"{web.url}/raw/1.jsonl.gz")
    assert b"".join(read_chunks(file)) == gzip.decompress((web.folder / "raw" / "1.jsonl.gz").read_bytes())
    web.encoding = None
    (file,) = expand_url(f"{web.url}/raw/3.parquet?download=true")
    assert b"".join(read_chunks(file)) == b"".join(read_chunks(web.folder / "raw" / "3.parquet"))
    web.ranges = False
    (file,) = expand_url(f"{web.url}/raw/3.parquet")
    with pytest.raises(RemoteError, match=r"3\.parquet: Parquet is read from its end.*download it"):
        list(read_chunks(file))


def test_errors_name_the_url_and_the_remedy(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    (web.folder / "secret.jsonl").touch()
    with pytest.raises(RemoteError, match=rf"{web.url}/none\.jsonl: no such file \(404\)"):
        expand([f"{web.url}/none.jsonl"])
    with pytest.raises(RemoteError, match=rf"{web.url}/secret\.jsonl: access denied \(403\); check the credentials"):
        expand([f"{web.url}/secret.jsonl?token=abc"])
    with pytest.raises(InputError, match=r"no file matches 'http.*none\*'"):
        expand([f"{web.url}/raw/none*"])
    with pytest.raises(InputError, match=r"raw: cannot tell the format"):
        expand([f"{web.url}/raw"])
    with pytest.raises(RemoteError, match=r"nope://x/y: fsspec knows no scheme nope:// .*pip install s3fs for s3://"):
        expand(["nope://x/y"])
    with pytest.raises(RemoteError, match="chained URLs are not read"):
        expand(["simplecache::http://x/y.jsonl"])
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(RemoteError, match=r"gs://bucket/\*\.jsonl: gs:// needs a driver .* pip install gcsfs"):
        expand(["gs://bucket/*.jsonl"])
    monkeypatch.setattr(remote, "_SILENCE_SECONDS", 0.1)
    web.silent_seconds = 1
    assert "abc" not in str(remote._as_error("https://h/x?key=abc", OSError("500, url='https://h/x%20?key=abc'")))
    with pytest.raises(RemoteError, match=rf"{web.url}/raw/2\.jsonl: no answer in time"):
        expand([f"{web.url}/raw/2.jsonl"])


def test_a_busy_server_is_asked_again_when_it_says(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("data_prep.retry.time", SimpleNamespace(monotonic=time.monotonic, sleep=waits.append))
    # Each twice, because the driver asks for the file if it was refused its description.
    web.failures = [answer for answer in ((429, {"Retry-After": "7"}), (503, {"Retry-After": "11"}), (500, {})) for _ in "12"]
    (file,) = expand([f"{web.url}/raw/2.jsonl"])
    assert sha256_location(file) == sha256_file(web.folder / "raw" / "2.jsonl")
    assert waits[:2] == [7, 11]
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (429, r"the server refuses so many requests \(429\); wait, or use fewer workers"),
        (503, r"the server has a fault \(503\)"),
        (400, r"the server refuses the request \(400\)"),
    ],
)
def test_the_error_says_what_the_server_answered(web: Web, failure: int, words: str) -> None:
    web.failures = [(failure, {})] * 1000
    with pytest.raises(RemoteError, match=rf"^{web.url}/raw/2\.jsonl: {words}"):
        expand([f"{web.url}/raw/2.jsonl"])
    assert (len(web.failures) >= 998) == (failure == 400)


def test_a_page_in_place_of_a_file_and_a_circle_are_named(web: Web) -> None:
    with pytest.raises(RemoteError, match=r"login\.jsonl\.zst: the server answered with an HTML page"):
        expand([f"{web.url}/login.jsonl.zst"])
    with pytest.raises(RemoteError, match=r"circle/2\.jsonl: the server redirects in a circle; check the URL in a browser"):
        expand([f"{web.url}/circle/2.jsonl"])


def test_a_file_that_the_server_compresses_on_the_way_is_read(web: Web) -> None:
    web.gzipped = True
    (file,) = expand([f"{web.url}/raw/2.jsonl"])
    assert not file.ranges  # type: ignore[union-attr]
    assert b"".join(read_chunks(file)) == (web.folder / "raw" / "2.jsonl").read_bytes()


def test_other_schemes(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/b.jsonl", b'{"text": "b"}\n')
    memory.pipe("/bucket/deep/a.jsonl", b'{"text": "a"}\n')
    try:
        files = expand(["memory://bucket/**/*.jsonl", "memory://bucket/b.jsonl"])
        assert [str(file) for file in files] == ["memory:///bucket/b.jsonl", "memory:///bucket/deep/a.jsonl"]
        assert [b"".join(read_chunks(file)) for file in files] == [b'{"text": "b"}\n', b'{"text": "a"}\n']
        with pytest.raises(RemoteError, match=r"a folder; name the files in it, as memory://bucket/\*\.jsonl\.zst"):
            expand(["memory://bucket"])
    finally:
        memory.rm("/bucket", recursive=True)
    (tmp_path / "a b.jsonl").touch()
    assert expand([f"file://{tmp_path}/a%20b.jsonl"]) == [tmp_path / "a b.jsonl"]


def test_names_contain_no_host_and_no_secret() -> None:
    def remote_file(url: str) -> RemoteFile:
        return RemoteFile(url, ranges=True)

    files = [remote_file("https://me:pw@host/pile/train/0.jsonl?key=1"), remote_file("https://host/pile/val.jsonl")]
    assert names(files) == ["train/0.jsonl", "val.jsonl"]
    assert str(files[0]) == public_url(files[0].url) == "https://host/pile/train/0.jsonl"
    mixed = [Path("/data/a/0.jsonl"), Path("/data/b/0.jsonl"), remote_file("s3://bucket/pile/0.jsonl")]
    assert names(mixed) == ["a/0.jsonl", "b/0.jsonl", "s3://bucket/0.jsonl"]
    assert names([Path("/data/a/0.jsonl")]) == ["0.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_killed_driver_resumes_over_bad_connections_with_filters(
    ray: None, web: Web, tokenizer_file: Path, tmp_path: Path, seed: int
) -> None:
    """As for local files: the output has the same bytes, also with URLs and references."""
    (web.folder / "quiz.jsonl").write_bytes((web.folder / "raw" / "2.jsonl").read_bytes()[:20_000].rpartition(b"\n")[0])

    def config(start: str, output: Path, **kwargs: object) -> PrepareConfig:
        against = {"against": [f"{start}/quiz.jsonl"], "ngram": 8}
        return _config(f"{start}/raw/*.jsonl*", output, tokenizer_file, unit_bytes=4000, decontaminate=against, **kwargs)

    manifest = prepare(config(str(web.folder), tmp_path / "local", workers=1))
    assert manifest.dropped["contaminated by quiz.jsonl"] > 5
    moments = random.Random(seed)
    remote_config = config(web.url, tmp_path / "data")
    web.cut_after = 2000
    for _ in range(3):
        web.cuts = 3
        program = "import sys; from data_prep.config import *; from data_prep.prepare import *; "
        program += "prepare(PrepareConfig.model_validate_json(sys.argv[1]))"
        process = subprocess.Popen([sys.executable, "-c", program, remote_config.model_dump_json()])
        time.sleep(moments.uniform(1, 6))
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        for child in psutil.wait_procs(children, timeout=3)[1]:
            child.kill()
    prepare(remote_config)
    assert _data_hashes(tmp_path / "data") == _data_hashes(tmp_path / "local")
