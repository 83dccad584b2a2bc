"""Downloads from a server on this machine that can misbehave."""

import gzip
import hashlib
import http.server
import re
import struct
import threading
import time

import numpy as np
import pytest

from stn.tool.config import UserError
from stn.tool.data import download, load

PAYLOAD = np.random.default_rng(0).bytes(300_000)
FILE = download.Remote("gzip.zip", hashlib.sha256(PAYLOAD).hexdigest())


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, and notes the Range header and the bytes sent for every request."""

    files: dict[str, bytes]
    ranges: list[str | None]
    sent: list[int]
    supports_range = True
    break_after: int | None = None  # bytes of the answer after which the connection ends
    encoding: str | None = None
    announces_length = True
    delay = 0.0  # seconds before an answer


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        time.sleep(server.delay)
        body = server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = 0
        if asked and server.supports_range:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if server.announces_length:
            self.send_header("Content-Length", str(len(body) - start))
        if server.encoding:
            self.send_header("Content-Encoding", server.encoding)
        self.end_headers()
        part = body[start:][: server.break_after]
        server.sent.append(len(part))
        self.wfile.write(part)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("STN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "EMNIST", FILE)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.files, running.ranges, running.sent = {"/data/gzip.zip": PAYLOAD}, [], []
        running.url = f"http://127.0.0.1:{running.server_port}/data"
        monkeypatch.setenv("STN_MIRROR", running.url)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "emnist"


def fetch(**kwargs):
    return download.fetch("emnist/balanced", splits=("train", "test"), **kwargs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_good_download_is_kept_and_not_fetched_twice(server, folder, capsys):
    assert fetch() == folder
    assert (folder / "gzip.zip").read_bytes() == PAYLOAD
    assert names(folder) == ["gzip.zip"]
    fetch()
    assert server.ranges == [None]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "gzip.zip: downloading, 0.0 of 0.3 MB" in captured.err


def test_file_changed_in_the_cache_is_fetched_again(server, folder):
    fetch()
    (folder / "gzip.zip").write_bytes(b"x" + PAYLOAD[1:])
    fetch()
    assert (folder / "gzip.zip").read_bytes() == PAYLOAD


def test_broken_connection_is_resumed_where_it_ended(server, folder):
    server.break_after = 123_457
    with pytest.raises(UserError, match=r"Received: 123457, .*Run again to resume.*--data-dir"):
        fetch()
    assert names(folder) == ["gzip.zip.part"]
    server.break_after = None
    fetch()
    assert server.ranges == [None, "bytes=123457-"]
    assert server.sent == [123_457, len(PAYLOAD) - 123_457]
    assert (folder / "gzip.zip").read_bytes() == PAYLOAD
    assert names(folder) == ["gzip.zip"]


def test_server_without_range_starts_over(server, folder):
    server.break_after = 100_000
    with pytest.raises(UserError, match="Run again to resume"):
        fetch()
    server.break_after, server.supports_range = None, False
    fetch()
    assert server.ranges == [None, "bytes=100000-"]
    assert server.sent == [100_000, len(PAYLOAD)]
    assert (folder / "gzip.zip").read_bytes() == PAYLOAD


@pytest.mark.parametrize(
    ("left", "requests"),
    [(PAYLOAD, 1), (PAYLOAD + b"more", 2)],
    ids=["complete but not renamed", "too long"],
)
def test_part_with_nothing_behind_it(server, folder, left, requests):
    folder.mkdir(parents=True)
    (folder / "gzip.zip.part").write_bytes(left)
    fetch()
    assert len(server.ranges) == requests
    assert (folder / "gzip.zip").read_bytes() == PAYLOAD
    assert names(folder) == ["gzip.zip"]


def test_wrong_checksum_leaves_nothing(server, folder):
    server.files["/data/gzip.zip"] = b"<html>Please log in</html>"
    with pytest.raises(UserError, match=f"sha256 {FILE.sha256}.*26 bytes; they were deleted"):
        fetch()
    assert names(folder) == []


def test_wrong_part_is_noticed_and_deleted(server, folder):
    folder.mkdir(parents=True)
    (folder / "gzip.zip.part").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match=r"they were deleted\. Run again"):
        fetch()
    assert names(folder) == []
    fetch()
    assert (folder / "gzip.zip").read_bytes() == PAYLOAD


def test_early_end_without_announced_length_is_not_taken_for_the_file(server, folder):
    server.announces_length, server.break_after = False, 1000
    with pytest.raises(UserError, match="1000 bytes"):
        fetch()
    assert names(folder) == []


def test_missing_file_on_the_server(server, folder):
    server.files.clear()
    with pytest.raises(UserError, match=r"/data/gzip\.zip\. Received: HTTP status 404"):
        fetch()
    assert names(folder) == []


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("STN_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/gzip.zip.*refused.*--data-dir"):
        fetch(mirror="http://127.0.0.1:9/")
    assert names(tmp_path / "emnist") == []


def test_mirror_must_be_a_web_address(server):
    with pytest.raises(UserError, match=r"https://.*'/mnt/data'.*--data-dir"):
        fetch(mirror="/mnt/data")
    assert server.ranges == []


def test_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="STN_CACHE"):
        fetch()


def test_mirror_argument_is_used_and_only_the_split_asked_for_is_fetched(
    server, tmp_path, monkeypatch
):
    pixels = np.arange(3 * 28 * 28).astype(np.uint8)
    raw = {
        "t10k-images-idx3-ubyte.gz": struct.pack(">4I", 0x803, 3, 28, 28) + pixels.tobytes(),
        "t10k-labels-idx1-ubyte.gz": struct.pack(">2I", 0x801, 3) + bytes([7, 0, 9]),
    }
    packed = {name: gzip.compress(data) for name, data in raw.items()}
    remotes = [download.Remote(n, hashlib.sha256(d).hexdigest()) for n, d in packed.items()]
    monkeypatch.setitem(download.MNIST, "test", tuple(remotes))
    monkeypatch.setenv("STN_MIRROR", "http://127.0.0.1:9/")
    server.files = {f"/data/{name}": data for name, data in packed.items()}
    # Many servers announce .gz files like this; decoding them would break the checksum.
    server.encoding = "gzip"

    dataset = load("mnist", splits=("test",), mirror=server.url)

    assert dataset.train is None
    assert dataset.test.labels.tolist() == [7, 0, 9]
    np.testing.assert_array_equal(dataset.test.images.ravel(), pixels)
    assert names(tmp_path / "cache" / "mnist") == sorted(packed)


def test_terminal_gets_a_progress_bar(server, folder, monkeypatch, capsys):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fetch()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "gzip.zip" in captured.err
    assert "downloading" not in captured.err
    assert (folder / "gzip.zip").read_bytes() == PAYLOAD


def test_two_at_once_download_once(server, folder, capsys):
    server.delay = 0.3
    first = threading.Thread(target=fetch)
    first.start()
    while not server.ranges:
        time.sleep(0.01)
    fetch()
    first.join()
    assert server.ranges == [None]
    assert (folder / "gzip.zip").read_bytes() == PAYLOAD
    assert "gzip.zip: another process is downloading it; waiting" in capsys.readouterr().err
