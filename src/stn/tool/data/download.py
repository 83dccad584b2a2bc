"""Download the official files into the cache folder: resumable, and verified before use."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import filelock
import pooch
import requests
import urllib3

from stn.tool.config import UserError, absolute

BLOCK = 1 << 16  # bytes
TIMEOUT = (15.0, 60.0)  # seconds to connect, and to wait for the next bytes


@dataclass(frozen=True)
class Remote:
    """A file to download.

    Attributes:
        name: Its name, appended to the base URL.
        sha256: Its checksum.
    """

    name: str
    sha256: str


BASES = {
    "emnist": "https://biometrics.nist.gov/cs_links/EMNIST/",
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
}
EMNIST = Remote("gzip.zip", "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e")
MNIST = {
    "train": (
        Remote(
            "train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        Remote(
            "train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
    ),
    "test": (
        Remote(
            "t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        Remote(
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
}


def cache_folder() -> Path:
    """Where downloads are kept: `STN_CACHE` if set, else the user's cache folder."""
    return absolute(os.environ.get("STN_CACHE") or pooch.os_cache("stn"))


def fetch(name: str, *, splits: Sequence[str], mirror: str | None = None) -> Path:
    """Make sure that the official files are in the cache folder, whole and unchanged.

    Args:
        name: `"mnist"` or `"emnist/..."`.
        splits: The splits whose files are needed. All of EMNIST is one file.
        mirror: Base URL to use instead of the official one, or that in `STN_MIRROR`.

    Returns:
        The folder that holds them.

    Raises:
        UserError: If a file cannot be had; the message says what to do.
    """
    family = name.partition("/")[0]
    base = mirror or os.environ.get("STN_MIRROR") or BASES[family]
    if not base.startswith(("http://", "https://")):
        raise UserError(
            f"Expected a mirror that starts with http:// or https://. Received: {base!r}. "
            "Pass a folder of this computer as --data-dir instead"
        )
    files = [EMNIST] if family == "emnist" else [file for split in splits for file in MNIST[split]]
    folder = cache_folder() / family
    for file in files:
        _fetch_file(f"{base.rstrip('/')}/{file.name}", file, folder)
    return folder


def _fetch_file(url: str, file: Remote, folder: Path) -> None:
    def downloader(url: str, output: Any, _pooch: Any) -> None:
        part = folder / f"{file.name}.part"
        _download(url, part, file.sha256)
        part.replace(output)

    pooch.get_logger().setLevel(logging.WARNING)  # the progress bar says enough
    try:
        with _alone(folder / file.name):
            # Pooch looks whether the file is there and unchanged, and renames what is finished.
            # Its annotation of `downloader` names the arguments of a processor.
            pooch.retrieve(
                url, f"sha256:{file.sha256}", file.name, folder, downloader=cast(Any, downloader)
            )
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise UserError(
            f"Expected to download {url}. Received: {_reason(error)}. "
            f"{_kept(folder / f'{file.name}.part')}{_by_hand(url)}"
        ) from error
    except OSError as error:
        raise UserError(
            f"Expected to write {file.name} into {folder}. Received: {error}. Make room or set "
            "STN_CACHE to another folder"
        ) from error


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process downloads the same; what is there needs no lock to be read."""
    if path.exists():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.parent.parent / f".{path.parent.name}-{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"{path.name}: another process is downloading it; waiting", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(url: str, part: Path, sha256: str) -> None:
    """Bring `part` to the whole file; what an earlier attempt left there is not fetched again."""
    while True:
        start = part.stat().st_size if part.exists() else 0
        # Servers may mark a .gz file as a compressed page; we want its bytes as they are.
        headers = {"Accept-Encoding": "identity", "User-Agent": "stn (python-requests)"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            status = response.status_code
            if start and status == 416:  # nothing behind `start`: complete, or not this file
                if _digest(part) == sha256:
                    return
                part.unlink()
                continue
            if start and status == 206:
                sent_from = response.headers.get("Content-Range", "").partition("-")[0]
                if sent_from.strip() != f"bytes {start}":
                    part.unlink()
                    continue
            elif status == 200:
                start = 0
            else:
                raise UserError(
                    f"Expected to download {url}. Received: HTTP status {status} "
                    f"{response.reason}. {_by_hand(url)}"
                )
            length = response.headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else None
            _receive(response, part, start, total)
        break

    size = part.stat().st_size
    if total is not None and size < total:
        raise UserError(
            f"Expected {total} bytes of {url}. Received: {size}, then the connection ended. "
            f"{_kept(part)}{_by_hand(url)}"
        )
    digest = _digest(part)
    if digest != sha256:
        part.unlink()
        raise UserError(
            f"Expected {url} with sha256 {sha256}. Received: {digest}, {size} bytes; they were "
            f"deleted. Run again, or use another source. {_by_hand(url)}"
        )


def _receive(response: requests.Response, part: Path, start: int, total: int | None) -> None:
    raw = response.raw
    # An early end is ours to notice, so that the last bytes before it are kept.
    raw.enforce_content_length = False
    with part.open("ab" if start else "wb") as file, _progress(part.stem, start, total) as advance:
        while block := raw.read(BLOCK, decode_content=False):
            file.write(block)
            advance(len(block))


@contextlib.contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show progress on standard error: a bar in a terminal, a line per tenth elsewhere."""
    if sys.stderr.isatty():
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total, completed=start)
            yield lambda count: bar.advance(task, count)
        return

    done, tenth = start, 10 * start // total if total else 0
    megabytes = f" of {total / 1e6:.1f}" if total else ""
    print(f"{name}: downloading, {done / 1e6:.1f}{megabytes} MB", file=sys.stderr)

    def advance(count: int) -> None:
        nonlocal done, tenth
        done += count
        now = 10 * done // total if total else done // 50_000_000
        if now > tenth:
            tenth = now
            print(f"{name}: {done / 1e6:.1f}{megabytes} MB", file=sys.stderr)

    yield advance


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    """What a chain of network errors comes down to, without addresses of Python objects."""
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT[1]:.0f} s"
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return f"{type(error).__name__} ({cause})"


def _kept(part: Path) -> str:
    return "Run again to resume. " if part.exists() else ""


def _by_hand(url: str) -> str:
    return (
        f"If that does not help, download {url} by hand and pass its folder as --data-dir, or "
        "name another server with --mirror"
    )
