"""Prediction of a stream of images: whether the speed and the memory stay as they are."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from stn.tool import environment, evaluation, learning, prediction, runs
from stn.tool.benchmark import Options, memory, timing
from stn.tool.config import Config
from stn.tool.progress import Progress

_FILES, _CLASSES, _SHAPE = 256, 62, (28, 28, 1)
_CHUNK = 1000
_MARKS = 10_000, 20_000, 50_000, 100_000, 200_000, 350_000, 500_000
_QUICK_MARKS = 1000, 2000


def measure(options: Options, progress: Progress) -> dict[str, Any]:
    """Two streams: what `stn predict` does with PNG files, and the model alone on uint8 images.

    Returns:
        `streams`: for each its `marks`, how many images there have been, the seconds and processor
        seconds since the mark before, and the memory there; `rates`, the slowest and the fastest
        images a second between two marks; and how much the memory has `grown` since the first.
    """
    neighbors = timing.Neighbors()
    marks = _QUICK_MARKS if options.quick else _MARKS
    with tempfile.TemporaryDirectory() as folder:
        run, files = _make(Path(folder))
        found = prediction.predict_each(run, itertools.cycle(files))
        with progress.step(f"predict, {marks[-1]:,} files"):
            predicted = _follow(found, marks)
        model = evaluation.load_model(run, None)
    with progress.step(f"The model alone, {marks[-1]:,} images"):
        alone = _follow(_probabilities(model), marks)
    return {
        "streams": {"predict": predicted, "model": alone},
        "neighbors": neighbors.share(),
        "missing": {},
    }


def _make(folder: Path) -> tuple[runs.Run, list[str]]:
    """A run as far as predictions need it, untrained, and image files."""
    config = Config(distort="none", backend=keras.backend.backend())
    model = learning.build(config, _SHAPE, _CLASSES, steps=1)
    run = runs.Run(folder / "run")
    runs.write_text(run.config_file, config.to_toml())
    runs.write_json(run.environment_file, environment.describe())
    about = {"class_names": [str(i) for i in range(_CLASSES)]}
    shapes = {"image_shape": _SHAPE, "input_shape": _SHAPE, "background": "dark"}
    runs.write_json(run.dataset_file, about | shapes)
    keras.Model(model.input, model.output).save(run.model_file)
    rng = np.random.default_rng(0)
    files = []
    for i in range(_FILES):
        drawn = np.zeros(_SHAPE[:2], "uint8")
        drawn[6:22, 6:22] = rng.integers(0, 256, (16, 16))
        files.append(str(folder / f"{i}.png"))
        Image.fromarray(drawn).save(files[-1])
    return run, files


def _probabilities(model: Any) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    chunk = rng.integers(0, 256, (_CHUNK, *_SHAPE), dtype="uint8")
    while True:
        yield from evaluation.predict_probabilities(model, chunk.copy(), batch_size=_CHUNK)


def _follow(results: Iterator[Any], marks: tuple[int, ...]) -> dict[str, Any]:
    """Take results until the last mark; those first ones for which things are compiled are free."""
    for _ in range(_CHUNK):
        next(results)
    found = []
    done, begun, busy = 0, time.perf_counter(), time.process_time()
    for mark in marks:
        for _ in range(mark - done):
            next(results)
        now, used = time.perf_counter(), time.process_time()
        found.append(
            {
                "images": mark,
                "seconds": now - begun,
                "processor_seconds": used - busy,
                "images_per_second": (mark - done) / (now - begun),
                "resident_bytes": memory.resident(),
            }
        )
        done, begun, busy = mark, now, used
    rates = [one["images_per_second"] for one in found]
    sizes = [one["resident_bytes"] for one in found]
    return {
        "marks": found,
        "rates": {"low": min(rates), "high": max(rates)},
        "grown": None if sizes[0] is None else sizes[-1] - sizes[0],
    }
