"""The growing report, as a browser would ask for it."""

import http.client
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from stn.tool import runs, watching
from stn.tool.config import Config, UserError

pytestmark = pytest.mark.once


def get(address, path="/", host=None):
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def run(tmp_path):
    return runs.Run(tmp_path / "run")


def start(run, epochs=0):
    runs.write_text(run.config_file, Config(epochs=9).to_toml())
    runs.write_json(run.environment_file, {"format": runs.FORMAT})
    record = {"loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
    runs.write_json(run.history_file, [{"epoch": i + 1} | record for i in range(epochs)])


def test_the_page_grows_with_the_run(run):
    with watching.serve(run) as address:
        assert address.startswith("http://127.0.0.1:")
        status, page = get(address)
        assert (status, "Training begins" in page) == (200, True)
        states = [get(address, "/state")[1]]
        for epochs in (0, 2):
            start(run, epochs)
            states.append(get(address, "/state")[1])
            page = get(address)[1]
            assert f"{epochs} of 9 epochs are done" in page or "No epoch is done" in page
            assert f'state !== "{states[-1]}"' in page
            assert "connect-src 'self'" in page
        assert len(set(states)) == 3
        assert get(address, "/state")[1] == states[-1]
    assert not run.report_file.exists(), "the server writes nothing"
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=5)


def test_a_page_is_drawn_once_for_everyone(run, monkeypatch):
    start(run, 1)
    drawn = []
    monkeypatch.setattr(watching.report, "render", lambda *a, **k: drawn.append(a) or "page")
    with watching.serve(run) as address:
        assert [get(address)[1] for _ in range(3)] == ["page"] * 3
        assert len(drawn) == 1


def test_nothing_else_is_served(run):
    start(run)
    with watching.serve(run) as address:
        for path in ("/config.toml", "/../config.toml", "/state?x=1"):
            assert get(address, path)[0] == 404
        # Another site whose name points to this machine.
        assert get(address, host="evil.example")[0] == 404
        assert get(address, host=f"localhost:{urlsplit(address).port}")[0] == 200


def test_a_damaged_file_is_tried_again(run):
    start(run, 1)
    run.history_file.write_text("[", encoding="utf-8")
    with watching.serve(run) as address:
        status, page = get(address)
        assert status == 503
        assert "history.json" in page
        assert 'fetch("/state")' in page, "it tries again by itself"
        start(run, 1)
        assert get(address)[0] == 200


def test_a_port_that_is_taken(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Expected a free port. Received: port={port}"):
            watching.serve(run, port=port).__enter__()


def test_it_ends_though_a_browser_holds_on(run):
    start(run)
    with (
        watching.serve(run) as address,
        socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=5) as held,
    ):
        held.sendall(b"GET / HTTP/1.1\r\n")  # and never the rest


def test_the_run_that_is_replaced_is_not_shown(run):
    start(run, 5)
    with watching.serve(run, new=True) as address:
        assert "Training begins" in get(address)[1]
        run.clear()
        assert "Training begins" in get(address)[1]
        start(run, 2)
        assert "2 of 9 epochs are done" in get(address)[1]
    with watching.serve(run) as address:
        assert "2 of 9 epochs are done" in get(address)[1], "one that goes on"


def test_those_who_watch_get_the_last_page(run):
    start(run, 1)
    pages = []
    with watching.serve(run) as address:
        get(address)
        before = get(address, "/state")[1]

        def look():
            while (state := get(address, "/state")[1]) == before:
                time.sleep(0.05)
            pages.append((state, get(address)[1]))

        thread = threading.Thread(target=look)
        thread.start()
        time.sleep(0.2)
    thread.join()
    [(state, page)] = pages
    assert state == f"{before}-ended"
    assert "Training has ended; this page changes no more." in page
    assert "Training has ended; this page changes no more." not in get_last(run)


def get_last(run):
    with watching.serve(run) as address:
        return get(address)[1]


@pytest.mark.parametrize("watched", [False, True])
def test_the_end_waits_for_nobody_for_long(run, watched, monkeypatch):
    monkeypatch.setattr(watching, "FAREWELL", 0.5)
    start(run)
    with watching.serve(run) as address:
        get(address)
        if watched:
            get(address, "/state")
        begun = time.monotonic()
    assert (time.monotonic() - begun > 0.5) == watched
    assert time.monotonic() - begun < 30


def test_a_tab_that_is_closed_is_no_error(run, monkeypatch, capfd):
    start(run)
    monkeypatch.setattr(watching.report, "render", lambda *a, **k: "x" * 50_000_000)
    with watching.serve(run) as address:
        gone = socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=5)
        gone.sendall(b"GET / HTTP/1.1\r\nHost: localhost:1\r\n\r\n")
        gone.recv(100)
        # A reset, at once.
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
        time.sleep(0.3)
    assert capfd.readouterr().err == ""
