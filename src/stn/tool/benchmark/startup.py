"""How long it takes until something happens: processes that start from nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import keras

from stn.tool.benchmark import Options, timing
from stn.tool.progress import Progress

_HELP = "import sys; sys.argv = ['stn', '--help']; from stn.tool.cli import main; main()"
_STARTS = {
    "python": "pass",
    "stn --help": _HELP,
    "import stn": "import stn",
    "import keras": "import keras",
}
_FIRST_STEP = """
import json, time
import keras
imported = time.time()
import numpy as np
from stn.tool import learning
from stn.tool.config import Config
model = learning.build(Config(), (28, 28, 1), 62, steps=100)
built = time.time()
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (256, 28, 28, 1), dtype="uint8")
model.train_on_batch(images, rng.integers(0, 62, 256))
print(json.dumps([imported, built, time.time()]))
"""


def measure(options: Options, progress: Progress) -> dict[str, Any]:
    """Cold starts, and the first training step.

    Returns:
        `starts`, wall-clock and processor seconds of each, and `first_step`.
    """
    neighbors = timing.Neighbors()
    rounds = options.rounds or (1 if options.quick else 7)
    with progress.step(f"Starting, {rounds} times each"):
        starts: dict[str, dict[str, list[float]]] = {
            name: {"seconds": [], "processor_seconds": []} for name in _STARTS
        }
        for _ in range(rounds):
            for name, code in _STARTS.items():
                wall, busy, _ = _start(code)
                starts[name]["seconds"].append(wall)
                starts[name]["processor_seconds"].append(busy)
    with progress.step("First training step"):
        first = first_step(1 if options.quick else 3)
    return {
        "rounds": rounds,
        "starts": {
            name: {kind: timing.spread(values) for kind, values in both.items()}
            for name, both in starts.items()
        },
        "first_step": first,
        "neighbors": neighbors.share(),
        "missing": {},
    }


def first_step(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds from the start of a process to the end of its first training step, and on the way."""
    marks: dict[str, list[float]] = {"import": [], "build": [], "step": [], "total": []}
    for _ in range(rounds):
        begun = time.time()
        _, _, output = _start(_FIRST_STEP)
        imported, built, done = json.loads(output.splitlines()[-1])
        passed = {"import": imported - begun, "build": built - imported, "step": done - built}
        for name, value in {**passed, "total": done - begun}.items():
            marks[name].append(value)
    return {name: timing.spread(values) for name, values in marks.items()}


def _start(code: str) -> tuple[float, float, str]:
    """Seconds, processor seconds and output of a new process."""
    begun, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - begun, os.times()
    if done.returncode:
        raise RuntimeError(f"A process that was to be timed failed: {done.stderr.strip()}")
    user, system = after.children_user, after.children_system
    return seconds, user + system - before.children_user - before.children_system, done.stdout
