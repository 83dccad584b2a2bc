"""The growing report of a run, on this machine only, while training goes on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stn.tool import pages, report, runs
from stn.tool.config import UserError

HOST = "127.0.0.1"
STATE = "/state"  # answers with another text whenever there is more to see


@contextlib.contextmanager
def serve(run: runs.Run, *, port: int = 0) -> Iterator[str]:
    """Serve the report of a run while the block goes on; nothing is written.

    Args:
        run: The run; its folder may not be there yet.
        port: Where to listen; any free port by default.

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
    server.run, server.lock, server.page = run, threading.Lock(), ("", b"")
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A browser that holds a connection open must not hold back the end of the training.
    block_on_close = False
    run: runs.Run
    lock: threading.Lock
    page: tuple[str, bytes]

    def state(self) -> str:
        """What the files that the page is made of look like, in a few characters."""
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
                if self.run.config_file.exists() and self.run.environment_file.exists():
                    text = report.render(self.run, watched=state)
                else:
                    text = pages.render("waiting.html", {"watched": state})
                self.page = state, text.encode()
            return self.page[1]


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        # A page elsewhere could have its own name point here, and read what it is answered.
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in (HOST, "localhost") or self.path not in ("/", STATE):
            self.send_error(404)
            return
        try:
            body = self.server.render() if self.path == "/" else self.server.state().encode()
        except (UserError, OSError):  # a file that is just being replaced, by --overwrite
            self.send_error(503)
            return
        self.send_response(200)
        kind = "text/html" if self.path == "/" else "text/plain"
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing: standard error belongs to the training."""
