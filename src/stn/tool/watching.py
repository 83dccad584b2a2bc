"""The growing report of a run, on this machine only, while training goes on."""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stn.tool import pages, report, runs
from stn.tool.config import UserError

HOST = "127.0.0.1"
STATE = "/state"  # answers with another text whenever there is more to see
FAREWELL = 3.0  # seconds that the last page is there for those who watched; they ask every 2


@contextlib.contextmanager
def serve(run: runs.Run, *, port: int = 0, new: bool = False) -> Iterator[str]:
    """Serve the report of a run while the block goes on; nothing is written.

    At the end the server stays, for three seconds at most, until those who watch have the last
    page.

    Args:
        run: The run; its folder may not be there yet.
        port: Where to listen; any free port by default.
        new: What is in the folder is another run, about to be replaced, and not to be shown.

    Returns:
        A context that gives the address of the page.

    Raises:
        UserError: If the port is taken or not allowed.

    Example:
        >>> with serve(Run("runs/affine")) as address:  # doctest: +SKIP
        ...     print(address)
        http://127.0.0.1:38211/
    """
    try:
        server = _Server((HOST, port), _Handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise UserError(
            f"Expected a free port. Received: port={port} ({error.strerror}); leave it out, "
            "and a free one is found"
        ) from error
    server.begin(run, new=new)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        try:
            yield f"http://{HOST}:{server.server_address[1]}/"
        finally:
            server.say_farewell()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A browser that holds a connection open must not hold back the end of the training.
    block_on_close = False

    def begin(self, run: runs.Run, *, new: bool) -> None:
        self.run, self.lock, self.page = run, threading.Lock(), ("", b"")
        self.ended, self.left = threading.Event(), threading.Semaphore(0)
        self.polls: collections.deque[float] = collections.deque(maxlen=100)
        self.replaced = self._files() if new else ""

    def say_farewell(self) -> None:
        """Wait a little for those who watch to take the last page with them."""
        self.ended.set()
        now = time.monotonic()
        if not any(now - poll < 10 for poll in self.polls):
            return
        watching = max(1, sum(now - poll < 2.5 for poll in self.polls))
        with contextlib.suppress(UserError, OSError):
            self.render()  # takes longer than to fetch it
        deadline = time.monotonic() + FAREWELL
        for _ in range(watching):
            self.left.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def state(self) -> str:
        """What there is to see, in a few characters."""
        return self._files() + ("-ended" if self.ended.is_set() else "")

    def _files(self) -> str:
        """What the files that the page is made of look like."""
        run = self.run
        files = [run.config_file, run.history_file, run.metrics_file, run.film_file, *run.frames()]
        seen = []
        for file in files:
            with contextlib.suppress(OSError):
                about = file.stat()
                seen.append(f"{file.name} {about.st_mtime_ns} {about.st_size}")
        return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]

    def render(self) -> bytes:
        """The page as it is now; drawn anew only if there is more to see."""
        with self.lock:
            state = self.state()
            if self.page[0] != state:
                begun = self.run.config_file.exists() and self.run.environment_file.exists()
                if begun and state.partition("-")[0] != self.replaced:
                    text = report.render(self.run, watched=state)
                else:
                    text = _waiting(state)
                self.page = state, text.encode()
            return self.page[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever closes or reloads the page while it is sent does no harm."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def _waiting(state: str, trouble: str = "") -> str:
    return pages.render("waiting.html", {"watched": state, "trouble": trouble})


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        # A page elsewhere could have its own name point here, and read what it is answered.
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in (HOST, "localhost") or self.path not in ("/", STATE):
            self.send_error(404)
            return
        if self.path == STATE:
            self.server.polls.append(time.monotonic())
            self._answer(200, "text/plain", self.server.state())
            return
        last = self.server.ended.is_set()
        try:
            page = self.server.render()
        except (UserError, OSError) as error:  # a file that is just being replaced, by --overwrite
            self._answer(503, "text/html", _waiting("again", str(error)))
            return
        self._answer(200, "text/html", page)
        if last:
            self.server.left.release()

    def _answer(self, status: int, kind: str, body: str | bytes) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing: standard error belongs to the training."""
