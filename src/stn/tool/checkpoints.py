"""A run folder that training can begin, leave and come back to.

After every epoch one atomic file holds all state there is, so that a run that was killed goes on
exactly where an uninterrupted one would be.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from stn.tool import data, environment, runs
from stn.tool.config import Config, UserError, absolute, locate


def resolve(config: Config, run: runs.Run | None = None) -> Config:
    """Fill in what was left to us, so that the run folder says what really happened.

    Args:
        config: What is wanted.
        run: A run that is to be gone on with: what the machine decided for it, stays decided.
    """
    precision = config.precision
    if precision == "auto":
        precision = (
            run.config.precision
            if run is not None and run.config_file.exists()
            else environment.fast_precision()
        )
    distort = config.distort or data.default_distortion(config.data)
    usual = data.default_augmentation(distort)
    return config.replace(
        data=locate(config.data),
        data_dir=None if config.data_dir is None else str(absolute(config.data_dir)),
        distort=distort,
        augment=usual if config.augment is None else config.augment,
        precision=precision,
        backend=keras.backend.backend(),
    )


def differences(before: Config, now: Config) -> list[str]:
    """The options in which two resolved configurations differ, but for where the data lie."""
    one, other = before.model_dump(), now.model_dump()
    places = {"data_dir", "mirror"}
    if all(config.data.startswith("folder:") for config in (before, now)):
        places.add("data")
    return [key for key in one if one[key] != other[key] and key not in places]


def prepare(
    out: str | os.PathLike[str], config: Config, *, resume: bool, overwrite: bool
) -> tuple[runs.Run, Config]:
    """Make sure that a run can go to a folder, or go on there; nothing is written yet.

    Returns:
        The run, and its configuration with all that was left to us.

    Raises:
        UserError: If there is something else, or another run.
    """
    absolute(out)
    run = runs.Run(out)
    config = resolve(config, run if resume else None)
    if resume:
        _check_resumable(run, config)
    else:
        _check_free(run, overwrite)
    return run, config


def _check_data(run: runs.Run, about: dict[str, Any]) -> None:
    """Make sure that a run goes on with the data it was begun with, wherever they lie now."""
    if not run.dataset_file.exists():
        return
    before = run.dataset
    for key in ("class_names", "image_shape", "input_shape", "train", "validation"):
        if key in about and before[key] != about[key]:
            raise UserError(
                f"Expected the data the run was begun with, {key}={before[key]!r}. "
                f"Received: {about[key]!r}; bring back what it was, or train again with another "
                "--out"
            )


class BusyError(UserError):
    """Another process is training the run."""


def begin(
    run: runs.Run, config: Config, about: dict[str, Any], *, resume: bool, overwrite: bool
) -> contextlib.ExitStack:
    """Make the folder ready to be written to, new or as the last checkpoint left it.

    Args:
        run: As `prepare` returns it.
        config: Likewise.
        about: What the data are; see `stn.tool.runs.Run.dataset`.
        resume: As for `prepare`.
        overwrite: As for `prepare`.

    Returns:
        What keeps other processes from training in the folder until its `with` block ends.

    Raises:
        BusyError: If another process is training there.
        UserError: If a run is to go on with other classes, or other images by number or shape.
    """
    if resume:
        _check_data(run, about)
        with _lock(run) as lock:
            run.clear_unfinished()
            if config != run.config:
                runs.write_text(run.config_file, config.to_toml())
            return lock.pop_all()
    try:
        _check_free(run, overwrite)
        with _lock(run) if run.config_file.exists() else contextlib.nullcontext():
            _create(run, config, overwrite)
    except UserError as error:  # it was free in `prepare`: another has begun while data was read
        raise BusyError(str(error)) from error
    return _lock(run)  # of the folder that is there now: a new one has taken its place


def _lock(run: runs.Run) -> contextlib.ExitStack:
    held = contextlib.ExitStack()
    try:
        import fcntl
    except ImportError:  # Windows
        return held
    folder = os.open(run.path, os.O_RDONLY)
    held.callback(os.close, folder)  # the system does so when the process dies, however it dies
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise BusyError(
            f"Expected a run that no other process is training. Received: {run.path}; wait until "
            "that has ended, or stop it"
        ) from None
    except OSError:  # a file system without locks
        held.close()
    return held


def _check_free(run: runs.Run, overwrite: bool) -> None:
    """Make sure that a new run may be written to a folder."""
    if not run.path.exists():
        above = next(parent for parent in run.path.absolute().parents if parent.exists())
        if not above.is_dir():
            raise UserError(
                f"Expected a folder to write the run to. Received: {run.path}, but {above} is a "
                "file"
            )
        runs.check_writable(above)
        return
    if not run.path.is_dir():
        raise UserError(f"Expected a folder to write the run to. Received: {run.path}, a file")
    runs.check_writable(run.path)
    if not any(run.path.iterdir()):
        return
    if not (run.config_file.exists() and run.environment_file.exists()):
        raise UserError(
            f"Expected a new or empty folder, or an earlier run. Received: {run.path}, which holds "
            "other files; choose another --out"
        )
    if not overwrite:
        raise UserError(
            f"Expected a new run folder. Received: {run.path}, which holds a run; go on with it "
            f"(--resume {run.path}), replace it (--overwrite), or choose another --out"
        )


def _check_resumable(run: runs.Run, config: Config) -> None:
    """Make sure that a run can go on, as if it had never stopped, with this configuration."""
    run = runs.Run.open(run.path)
    before = run.config
    if changed := differences(before, config):
        raise UserError(
            "Expected the configuration of the run that is resumed. Received other values for: "
            + ", ".join(
                f"{key}={getattr(config, key)!r} (the run has {getattr(before, key)!r})"
                for key in changed
            )
        )
    later = (run.history_file, run.metrics_file, run.model_file)
    if not run.checkpoint_file.exists() and any(file.exists() for file in later):
        raise UserError(
            f"Expected a run with its state, {run.checkpoint_file.name}. Received: {run.path}, "
            f"where it is missing, so that training cannot go on; begin again with --overwrite"
        )
    backend = keras.backend.backend()
    version = environment.version_of(backend)
    if (was := run.environment["backend_version"]) != version:
        raise UserError(
            f"Expected {backend} {was}, with which the run was started. Received: {version}; "
            "the result would not be exact. Install that version, or train again"
        )


def _create(run: runs.Run, config: Config, overwrite: bool) -> None:
    """Make the run folder appear at once, with all that is needed to resume it."""
    if overwrite and run.config_file.exists():
        run.clear()
    parent = run.path.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".stn-") as folder:
        new = runs.Run(Path(folder) / "run")
        runs.write_text(new.config_file, config.to_toml())
        runs.write_json(new.environment_file, environment.describe())
        try:
            new.path.replace(run.path)
        except OSError:  # a folder that stays: a link, a mount, one with someone else's files
            if not run.path.is_dir():
                raise
            if not overwrite:
                _check_free(run, overwrite)
            for file in (new.environment_file, new.config_file):
                file.replace(run.path / file.name)


def save_model(run: runs.Run, model: keras.Model) -> None:
    """Write a model to be used, not to be trained further."""
    # Without optimizer and loss: a third of the size, and Keras can load it without our code for
    # training.
    bare = keras.Model(model.input, model.output, name=model.name)
    with runs.atomic(run.model_file) as temporary:
        bare.save(temporary)


def save(
    run: runs.Run, model: keras.Model, state: dict[str, Any], kept: Sequence[np.ndarray] = ()
) -> None:
    """Write all state of the training to one file, at once, and its history for people."""
    arrays: dict[str, Any] = {f"kept/{i}": weight for i, weight in enumerate(kept)}
    for i, variable in enumerate([*model.variables, *model.optimizer.variables]):
        arrays[f"variable/{i}"] = keras.ops.convert_to_numpy(variable)
    arrays["state"] = np.array(json.dumps(state))
    with runs.atomic(run.checkpoint_file) as temporary:
        np.savez(temporary, **arrays)
    runs.write_json(run.history_file, state["history"])


def restore(run: runs.Run, model: keras.Model, *, kept: bool = True) -> dict[str, Any]:
    """Put everything back as `save` found it; returns its state, with the weights kept, if any."""
    variables = [*model.variables, *model.optimizer.variables]
    file = run.checkpoint_file
    reading = runs.reading(file, remedy="train again with --overwrite")
    with reading, file.open("rb") as opened, np.load(opened) as arrays:
        state = json.loads(str(arrays["state"]))
        if kept:
            state["kept"] = [arrays[f"kept/{i}"] for i in range(len(model.weights))]
        for i, variable in enumerate(variables):
            variable.assign(arrays[f"variable/{i}"])
    runs.write_json(run.history_file, state["history"])  # it may be an epoch behind
    return state


def summarize(model: keras.Model) -> str:
    """The model layer by layer, as wide as it takes."""
    lines: list[str] = []
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "96"  # Keras cuts off what is wider than the terminal, if there is one
    try:
        model.summary(print_fn=lines.append, expand_nested=True, line_length=78)
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return "\n".join(lines).rstrip() + "\n"
