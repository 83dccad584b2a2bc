"""A run is a folder; this module is the only owner of the names of the files in it."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import tempfile
import typing
import zipfile
import zlib
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

from stn.tool.config import Config, UserError

FORMAT = 1
"""Version of the folder layout; a run written with another one is refused with a clear message."""


_UNFINISHED = ".unfinished-"  # how the names of temporary files begin


class Run:
    """The folder of one training run.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.config_file = self.path / "config.toml"  # the resolved configuration
        self.environment_file = self.path / "environment.json"  # versions, hardware, revision
        self.dataset_file = self.path / "dataset.json"  # class names, shapes, counts
        self.summary_file = self.path / "summary.txt"  # the model, layer by layer
        self.history_file = self.path / "history.json"  # one record per finished epoch
        self.checkpoint_file = self.path / "checkpoint.npz"  # everything needed to go on exactly
        self.model_file = self.path / "model.keras"  # the model that is kept, so far
        self.metrics_file = self.path / "metrics.json"  # results on the test images
        self.frames_folder = self.path / "frames"  # what the monitor drew, one PNG per epoch
        self.board_folder = self.path / "tensorboard"  # its log, where that was asked for
        self.film_file = self.path / "stn.gif"  # all frames, in order
        self.webp_file = self.path / "stn.webp"  # the same without loss of color
        self.curves_file = self.path / "curves.png"
        self.confusion_file = self.path / "confusion.png"
        self.averages_file = self.path / "averages.png"  # of each class, before and after
        self.theta_file = self.path / "theta.png"  # how images are turned, zoomed, moved
        self.wall_file = self.path / "wall.npz"  # test images, and what it makes of them
        self.report_file = self.path / "report.html"

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    def frame_file(self, epoch: int) -> Path:
        """Where the monitor's picture after `epoch` goes; epoch 0 is before training."""
        return self.frames_folder / f"epoch-{epoch:03d}.png"

    def sweep_file(self, kind: str) -> Path:
        """Where the results of a robustness sweep go, as JSON; CSV and PNG are beside it."""
        return self.path / f"sweep-{kind}.json"

    def sweeps(self) -> dict[str, Path]:
        """The results of the sweeps that are there, by kind."""
        files = sorted(self.path.glob(self.sweep_file("*").name))
        return {file.stem.removeprefix("sweep-"): file for file in files}

    def frames(self) -> list[Path]:
        """The monitor's pictures, in the order of the epochs."""
        files = self.frames_folder.glob("epoch-*.png")
        return sorted(files, key=lambda file: (len(file.name), file.name))

    @property
    def config(self) -> Config:
        """The resolved configuration this run was started with."""
        return Config.restore(self.config_file)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record per finished epoch; empty before the first."""
        history = read_json(self.history_file) if self.history_file.exists() else []
        if not isinstance(history, list) or not all(isinstance(one, dict) for one in history):
            raise UserError(
                f"Expected a JSON array of objects. Received: {self.history_file} of another kind"
            )
        return history

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, backend, hardware and source revision the run was started with."""
        return _read_object(self.environment_file)

    @property
    def metrics(self) -> dict[str, Any]:
        """Results on the test images; empty before training has ended."""
        if not self.metrics_file.exists():
            return _Found({}, self.metrics_file)
        return _read_object(self.metrics_file)

    @property
    def dataset(self) -> dict[str, Any]:
        """Class names, image shapes and counts of the data it was trained on."""
        found = _read_object(self.dataset_file)
        for key in ("class_names", "image_shape", "input_shape"):
            if not isinstance(found.get(key, []), list):
                raise UserError(
                    f"Expected {key} in {self.dataset_file} to be an array. "
                    f"Received: {found[key]!r}"
                )
        return found

    def clear_unfinished(self) -> None:
        """Delete the temporary files that a killed process left."""
        for folder in (self.path, self.frames_folder):
            for file in folder.glob(f"{_UNFINISHED}*"):
                file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete the files of the run; what else lies in the folder stays."""
        self.clear_unfinished()
        files = [v for k, v in vars(self).items() if k.endswith("_file")]
        for sweep in self.sweeps().values():
            files += [sweep, sweep.with_suffix(".csv"), sweep.with_suffix(".png")]
        for file in [*files, *self.frames(), *self.board_folder.glob("events.out.tfevents.*")]:
            file.unlink(missing_ok=True)
        for folder in (self.frames_folder, self.board_folder):
            with contextlib.suppress(OSError):  # holds something else, or is not there
                folder.rmdir()

    @classmethod
    def open(cls, path: Run | str | os.PathLike[str]) -> Run:
        """Open an existing run folder; a run is returned as it is.

        Raises:
            UserError: If it is missing, is not a run, or has another layout version.
        """
        if isinstance(path, Run):
            return path
        run = cls(path)
        if run.path.is_file():
            inside = (run.path.parent / run.config_file.name).is_file()
            raise UserError(
                f"Expected a run folder. Received: {str(path)!r}, a file"
                + (f"; the folder is {str(run.path.parent)!r}" if inside else "")
            )
        if not run.path.is_dir():
            raise UserError(f"Expected a run folder. Received: {str(path)!r}, which does not exist")
        if not run.environment_file.is_file() or not run.config_file.is_file():
            raise UserError(
                f"Expected a run folder, one that `stn train` made. Received: {str(path)!r}, "
                f"which has no {run.config_file.name} and {run.environment_file.name}"
            )
        environment = run.environment
        found = environment.get("format")
        if found != FORMAT:
            raise UserError(
                f"Expected a run folder of layout version {FORMAT}. Received: {str(path)!r} of "
                f"version {found!r}, written by stn {environment.get('stn', '?')}: "
                "use that version, or train again"
            )
        return run


@contextlib.contextmanager
def reading(path: Path, *, remedy: str = "") -> Iterator[None]:
    """A block that reads a file of a run; if it is damaged, the user is to know which one it is.

    Args:
        path: The file.
        remedy: What to do about it; by default to delete it, for files a run can do without.
    """
    try:
        yield
    except UserError:
        raise
    except (*_DAMAGE, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        # What libraries say of a damaged file is about their insides, or about ways to trust it.
        why = error.strerror if isinstance(error, OSError) else None
        raise UserError(
            f"Expected a file that `stn` wrote. Received: {path}, which "
            + (f"cannot be read ({why}): " if why else "is damaged: ")
            + (remedy or "delete it; the page is then made without it")
        ) from error


_DAMAGE = (EOFError, SyntaxError, zipfile.BadZipFile, zlib.error)  # of archives and of pictures


class _Found(dict[str, Any]):
    """What a JSON file says; to miss something in it is the user's to know about."""

    def __init__(self, found: dict[str, Any], path: Path):
        super().__init__(found)
        self._path = path

    def __missing__(self, key: str) -> typing.NoReturn:
        found = "a file without it; it is damaged, or of another version"
        if not self._path.exists():
            found = "no such file; training has not ended"
        raise UserError(f"Expected {key!r} in {self._path}. Received: {found}")


def epoch_of(frame: Path) -> int:
    """The epoch of one of the monitor's pictures."""
    return int(re.sub(r"\D", "", frame.stem) or 0)


def is_number(value: Any) -> typing.TypeGuard[float]:
    """Whether something that a JSON file says is a number, and a finite one."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def read_json(path: Path, object_hook: Any = None) -> Any:
    """Read a JSON file of a run; a damaged one is the user's to know about."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=object_hook)
    except (OSError, ValueError) as error:
        raise UserError(f"Expected a readable JSON file. Received: {path} ({error})") from error


def _read_object(path: Path) -> dict[str, Any]:
    found = read_json(path, lambda found: _Found(found, path))
    if not isinstance(found, dict):
        raise UserError(f"Expected a JSON object. Received: {path} of another kind")
    return found


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, all of it or nothing."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, all of it or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, all of it or nothing."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def check_writable(folder: Path) -> None:
    """Raise an OSError if nothing may be written into a folder."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` only if the block succeeds.

    Example:
        >>> with atomic("model.json") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"Expected a file to write. Received: {str(path)!r}, a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept: writers such as Pillow and Keras choose the format by it.
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f"{_UNFINISHED}{path.stem}-", suffix=path.suffix
        )
    except OSError as error:
        error.filename = str(path)  # what was asked for, not the temporary name
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


_UMASK = os.umask(0)
os.umask(_UMASK)
