"""Training: images a second of the tool's own step, beside the code that tutorials have."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from stn.tool import examples, learning, runs, training
from stn.tool.benchmark import PEERS, Options, contenders, startup, timing
from stn.tool.config import Config
from stn.tool.data import Split, distortions
from stn.tool.monitor import Monitor
from stn.tool.progress import Progress

BASELINE = "tutorial"
_CLASSES, _SIZE = 62, 28
_EPOCHS = {"glyphs": 50_220, "EMNIST ByClass": 628_138}  # training images, without validation


def measure(options: Options, progress: Progress) -> dict[str, Any]:
    """The training step, what surrounds it, and distortions.

    Returns:
        `steps` and their `ratios` to the baseline; `input_share`, `monitor`, `first_step`,
        `distortions`; `missing`.
    """
    batch, steps, rounds = (16, 2, 2) if options.quick else (1024, 3, 7)
    rounds = options.rounds or rounds
    split = _draw(batch * (steps + 1))
    missing = {}
    with progress.step("Building the models"):
        models, blocks = {}, {}
        for name, values in {
            "compact": {"model": "compact", "augment": 0.0},
            "compact, augmented": {"model": "compact", "augment": 0.5},
            "reference": {"model": "reference", "augment": 0.0},
        }.items():
            config = Config(distort="none", batch_size=batch, **values)
            models[name], blocks[name] = _ours(config, split)
        if keras.backend.backend() == "tensorflow":
            blocks[BASELINE] = _theirs(split, batch)
            blocks[f"{BASELINE}, XLA"] = _theirs(split, batch, jit_compile=True)
        else:
            missing[BASELINE] = (
                "It is written for TensorFlow, and Keras runs on " + keras.backend.backend()
            )
    neighbors = timing.Neighbors()
    with progress.step(f"Training, {rounds} times {steps} steps of each"):
        seconds = timing.take_turns(blocks, rounds=rounds)
    taken = neighbors.share()
    found = {
        name: {
            "seconds": timing.spread(values),
            "images_per_second": batch / timing.spread(values)["median"],
        }
        for name, values in seconds.items()
    }
    # How many times theirs our images a second are: their time by ours.
    ratios = {
        name: timing.ratio(seconds[BASELINE], values)
        for name, values in seconds.items()
        if BASELINE in seconds and name != BASELINE
    }
    waiting = timing.ratio(seconds["compact"], seconds["compact, augmented"])
    with progress.step("Monitor"):
        drawing = _monitor(models["compact"], split, rounds)
    rate = found["compact, augmented"]["images_per_second"]
    with progress.step("Distortions"):
        distorted = _distortions(options, batch, missing)
    with progress.step("First step of a new process"):
        first = startup.first_step(1 if options.quick else 3)
    return {
        "rounds": rounds,
        "batch": batch,
        "image": [_SIZE, _SIZE, 1],
        "classes": _CLASSES,
        "steps": found,
        "ratios": ratios,
        # Of an epoch, what is spent on images freshly changed instead of as they are.
        "input_share": {"median": 1 - waiting["median"]}
        | {"low": 1 - waiting["high"], "high": 1 - waiting["low"]},
        "monitor": {
            "seconds": drawing,
            "shares": {
                name: drawing["median"] / (drawing["median"] + count / rate)
                for name, count in _EPOCHS.items()
            },
        },
        "first_step": first,
        "distortions": distorted,
        "neighbors": taken,
        "missing": missing,
    }


def _draw(count: int) -> Split:
    """Noise: what is in the images changes nothing in how long they take."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, _SIZE, _SIZE, 1), dtype="uint8")
    return Split(images, rng.integers(0, _CLASSES, count))


class _Clock(keras.callbacks.Callback):
    """Seconds a step, without the first one and what comes before it."""

    def __init__(self) -> None:
        super().__init__()
        self._first: tuple[int, float] | None = None
        self.seconds = math.nan

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        last = batch + 1 >= self.params["steps"]
        if self._first is None or last:
            float(logs["loss"])  # which waits until it has been computed
        now = time.perf_counter()
        if self._first is None:
            self._first = batch, now
        elif last:
            first, begun = self._first
            self.seconds = (now - begun) / (batch - first)


def _ours(config: Config, split: Split) -> tuple[Any, Callable[[], float]]:
    batches = training.Batches(config, split, distortions.DISTORTIONS["none"])
    model = learning.build(config, (_SIZE, _SIZE, 1), _CLASSES, steps=len(batches))

    def block() -> float:
        batches.epoch += 1
        clock = _Clock()
        learning.fit(model, batches, clock)
        return clock.seconds

    return model, block


def _theirs(split: Split, batch: int, **options: Any) -> Callable[[], float]:
    """The tutorial's model, compiled as Keras does by default or as told, fed from arrays."""
    model = tutorial_model(**options)
    images, labels = split.images.astype("float32") / 255, split.labels

    def block() -> float:
        clock = _Clock()
        model.fit(images, labels, batch, shuffle=False, verbose=0, callbacks=[clock])
        return clock.seconds

    return block


def tutorial_model(**options: Any) -> keras.Model:
    """The network of the tutorials, with the sampler that they have: four times `tf.gather_nd`."""
    import tensorflow as tf

    def features(x: Any) -> Any:
        for filters in (64, 128, 256):
            x = layers.Conv2D(filters, 3, activation="relu", kernel_initializer="he_normal")(x)
            x = layers.MaxPooling2D(2)(x)
        x = layers.GlobalAveragePooling2D()(x)
        x = layers.Dense(256, activation="relu")(x)
        return layers.Dense(128, activation="relu")(x)

    class Sampler(layers.Layer):
        def call(self, images: Any, theta: Any) -> Any:
            count, height, width = tf.shape(images)[0], *images.shape[1:3]
            x, y = tf.meshgrid(tf.linspace(-1.0, 1.0, width), tf.linspace(-1.0, 1.0, height))
            grid = tf.stack([tf.reshape(x, [-1]), tf.reshape(y, [-1]), tf.ones([height * width])])
            points = tf.matmul(
                tf.reshape(theta, [-1, 2, 3]), tf.tile(grid[None], tf.stack([count, 1, 1]))
            )
            x = tf.reshape(points[:, 0], [-1, height, width])
            y = tf.reshape(points[:, 1], [-1, height, width])
            x, y = 0.5 * (x + 1.0) * (width - 1), 0.5 * (y + 1.0) * (height - 1)
            left, top = tf.cast(tf.floor(x), "int32"), tf.cast(tf.floor(y), "int32")
            left, right = (tf.clip_by_value(i, 0, width - 1) for i in (left, left + 1))
            top, bottom = (tf.clip_by_value(i, 0, height - 1) for i in (top, top + 1))
            rows = tf.tile(tf.reshape(tf.range(count), [-1, 1, 1]), [1, height, width])

            def pixel(y: Any, x: Any) -> Any:
                return tf.gather_nd(images, tf.stack([rows, y, x], axis=3))

            x0, x1, y0, y1 = (tf.cast(i, "float32") for i in (left, right, top, bottom))
            corners = [
                ((x1 - x) * (y1 - y), pixel(top, left)),
                ((x1 - x) * (y - y0), pixel(bottom, left)),
                ((x - x0) * (y1 - y), pixel(top, right)),
                ((x - x0) * (y - y0), pixel(bottom, right)),
            ]
            return tf.add_n([weight[..., None] * value for weight, value in corners])

    images = keras.Input((_SIZE, _SIZE, 1))
    identity = keras.initializers.Constant(np.array([1, 0, 0, 0, 1, 0], "float32"))
    theta = layers.Dense(6, kernel_initializer="zeros", bias_initializer=identity)(features(images))
    x = layers.Dropout(0.5)(features(Sampler()(images, theta)))
    model = keras.Model(images, layers.Dense(_CLASSES, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def _monitor(model: keras.Model, split: Split, rounds: int) -> dict[str, float]:
    config = Config(distort="none")
    names = [str(i) for i in range(_CLASSES)]
    with tempfile.TemporaryDirectory() as folder:
        run = runs.Run(folder)
        probe = examples.Probe(model, "affine")
        monitor = Monitor(run, config, probe, split.images, split.labels, names)
        monitor.draw(0)
        seconds = []
        for epoch in range(1, rounds + 1):
            begun = time.perf_counter()
            monitor.draw(epoch)
            seconds.append(time.perf_counter() - begun)
    return timing.spread(seconds)


def _distortions(options: Options, batch: int, missing: dict[str, str]) -> dict[str, Any]:
    """Images a second that come out of a distortion, and of a loop over OpenCV's `warpAffine`."""
    images = _draw(batch).images
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for name, distortion in {
        "RTS": distortions.DISTORTIONS["RTS"],
        "augmentation": distortions.augmentation(1.0),
    }.items():
        calls: dict[str, Callable[[], Any]] = {"stn": lambda d=distortion: d(images, rng)}
        if "opencv" in options.peers:
            loop = _opencv_loop(images, distortion)
            if loop is None:
                missing["opencv"] = f"no module {PEERS['opencv']!r} is installed"
            else:
                calls["opencv"] = loop
        seconds = timing.interleave(
            calls, rounds=2 if options.quick else 15, least=1e-4 if options.quick else 0.02
        )
        found[name] = {
            who: {
                "seconds": timing.spread(values),
                "images_per_second": batch / timing.spread(values)["median"],
            }
            for who, values in seconds.items()
        }
        if "opencv" in seconds:
            found[name]["ratio"] = timing.ratio(seconds["opencv"], seconds["stn"])
    return found


def _opencv_loop(images: np.ndarray, distortion: Any) -> Callable[[], Any] | None:
    """The same distortion, drawn beforehand, image by image."""
    try:
        import cv2
    except ImportError:
        return None
    size = images.shape[1:3]
    height, width = distortion.output_size(size)
    params = distortion.params(len(images), size, np.random.default_rng(0)).reshape(-1, 2, 3)
    whole = np.tile(np.eye(3), (len(images), 1, 1))
    whole[:, :2] = params
    from_points = contenders.to_pixels
    matrices = (from_points(size) @ whole @ np.linalg.inv(from_points((height, width))))[:, :2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    def loop() -> np.ndarray:
        result = np.empty((len(images), height, width, 1), "uint8")
        for i in range(len(images)):
            result[i, ..., 0] = cv2.warpAffine(images[i], matrices[i], (width, height), flags=flags)
        return result

    return loop
