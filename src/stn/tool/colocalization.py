"""Co-localization: find the object that some images have in common, without a label or a box.

After Jaderberg et al. 2015, appendix A.2. Digits of one class lie somewhere on larger canvases,
alone (T) or among patches of other digits (TC). A transformer cuts a window out of each canvas. It
is right if the windows of two canvases are more like each other than like windows cut at random,
in the eyes of an encoder that was trained to tell digits apart; nothing else is asked of it. Read
`train` from top to bottom; it is the whole story.
"""

from __future__ import annotations

import os
import time
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import stn
from stn import grids, models, transforms
from stn.tool import (
    checkpoints,
    data,
    environment,
    films,
    learning,
    pictures,
    plots,
    report,
    runs,
    training,
)
from stn.tool.board import Board
from stn.tool.config import Config, Stream, UserError
from stn.tool.data import distortions
from stn.tool.data.scenes import CANVAS, Scenes, draw_scenes, iou
from stn.tool.progress import Progress
from stn.tool.tasks import load_split

PATCHES = 16  # of clutter on a canvas
MARGIN = 1.0  # the squared distance of two encodings that have nothing in common
STEPS = 10  # an epoch; each sees all canvases
ZOOMING = 0.6  # share of the training in which the window shrinks from the canvas to the object
SHIFT = 1 / 7  # of the canvas, by which it is moved in training
ENCODER_STEPS, ENCODER_BATCH = 450, 256
SLACK = 2 / 42  # normalized: a digit counts as whole if no more than two pixels of its frame miss
SHOWN = 16  # canvases in a picture

# What of a configuration makes a difference here; of `transform` there is only one.
_USED = (
    *("recipe", "task", "data", "data_dir", "mirror", "image_size", "color", "distort"),
    *("object_class", "transform", "epochs", "batch_size", "learning_rate", "schedule"),
    *("seed", "deterministic", "tensorboard", "backend"),
)


def train(
    config: Config,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> runs.Run:
    """Let a transformer find what `batch_size` canvases have in common, and see how well it does.

    Of the configuration it uses the data, `distort` (T or TC), `object_class`, `batch_size`,
    `epochs`, `learning_rate`, `schedule`, `seed`, and what concerns machine and run folder; others
    must be as they usually are.

    Args:
        config: What to do.
        out: The run folder to write; `stn.tool.runs` says what will be in it.
        resume: Go on with the run in `out`, exactly as if it had never stopped.
        overwrite: Replace what is in `out`.
        progress: Where to show progress; nowhere by default.

    Returns:
        The finished run.

    Raises:
        UserError: If something given cannot be used; nothing has been written then.
        TrainingError: If the loss is not a number any more; the last checkpoint is kept.

    Example:
        >>> run = train(Config(recipe="colocalization"), "runs/eights")  # doctest: +SKIP
    """
    begun = time.perf_counter()
    progress = progress or Progress(quiet=True)
    run, config = checkpoints.prepare(out, _check(config), resume=resume, overwrite=overwrite)
    board = Board(run, wanted=config.tensorboard)

    # Data. Where the objects are is known here, but only used to see how well they are found.
    with progress.step(f"Reading {config.data}"):
        names, digits = load_split(config, "train")
        chosen = _chosen(config, names, digits)
    clutter = PATCHES if config.distort == "TC" else 0
    rng = np.random.default_rng((config.seed, Stream.SCENES))
    scenes = draw_scenes(digits.images[chosen], digits.images, clutter, rng)

    # Model.
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        environment.make_deterministic()
    size = digits.images.shape[1:3]
    locator = build_locator(scenes.images.shape[1:], size)
    classifier, encoder = build_encoder(digits.images.shape[1:], len(names) + 1)
    summary = checkpoints.summarize(locator)
    about = {
        "name": config.data,
        "class_names": list(names),
        "image_shape": list(digits.images.shape[1:]),
        "input_shape": list(scenes.images.shape[1:]),
        "train": len(scenes.images),
    }
    with checkpoints.begin(run, config, about, resume=resume, overwrite=overwrite):
        new, encoder_accuracy = not run.checkpoint_file.exists(), 0.0
        started = time.perf_counter()
        if new:
            with progress.step("Training the encoder to tell digits apart"):
                views = _Views(config, digits, clutter)
                seen = learning.fit(classifier, views)
                encoder_accuracy = float(seen["accuracy"][-1])
        encoder.trainable = False
        model = _build_trainer(config, locator, encoder)
        if not new:
            state = checkpoints.restore(run, model, kept=False)
        else:
            seconds = time.perf_counter() - started
            state = {"history": [], "encoder_accuracy": encoder_accuracy, "seconds": seconds}
            runs.write_text(run.summary_file, summary)
            runs.write_json(run.dataset_file, about)
            _draw(run, config, 0, locator, scenes, zoom_at(0, config.epochs))
            board.add(0, {}, run.frame_file(0))
            checkpoints.save(run, model, state)
        progress.say(summary)
        progress.say(
            f"{len(scenes.images)} canvases with {config.object_class!r} of {config.data}, "
            f"distortion {config.distort}. {config.backend}, {config.epochs} epochs. "
            f"Everything goes to {run.path}"
        )

        # Training.
        steps = _Steps(config, scenes.images)
        for epoch in range(len(state["history"]) + 1, config.epochs + 1):
            started = time.perf_counter()
            steps.epoch = epoch
            rate = float(ops.convert_to_numpy(model.optimizer.learning_rate))
            with progress.epoch(epoch, config.epochs, STEPS) as bar:
                watcher = training.Watcher(bar, epoch, config, run)
                logs = learning.fit(model, steps, watcher)
            seconds = time.perf_counter() - started
            zoom = zoom_at(epoch * STEPS, config.epochs)
            boxes = scenes.boxes_around(locate(locator, scenes.images), zoom)
            overlap = iou(boxes, scenes.boxes)
            record = {
                "epoch": epoch,
                "loss": float(logs["loss"][-1]),
                "accuracy": float(np.mean(overlap > 0.5)),
                "mean_iou": float(np.mean(overlap)),
                "zoom": zoom,
                "learning_rate": rate,
                "seconds": seconds,
                "images_per_second": STEPS * len(scenes.images) / seconds,
            }
            state["history"].append(record)
            state["seconds"] += time.perf_counter() - started
            checkpoints.save_model(run, locator)
            _draw(run, config, epoch, locator, scenes, zoom)
            board.add(epoch, record, run.frame_file(epoch))
            checkpoints.save(run, model, state)
            progress.epoch_done(record, best=False)
        board.close()

        # What was found, on the canvases themselves: there is nothing that it learned from labels.
        with progress.step("Drawing the report"):
            boxes = scenes.boxes_around(locate(locator, scenes.images), 1 / CANVAS)
            overlap = iou(boxes, scenes.boxes)
            runs.write_json(
                run.metrics_file,
                {
                    "accuracy": float(np.mean(overlap > 0.5)),
                    "mean_iou": float(np.mean(overlap)),
                    "count": len(overlap),
                    "object_class": config.object_class,
                    "images": [
                        {"true": true, "found": found, "iou": round(float(one), 4)}
                        for true, found, one in zip(
                            scenes.boxes.tolist(), boxes.round(2).tolist(), overlap, strict=True
                        )
                    ],
                    "encoder_accuracy": state["encoder_accuracy"],
                    "epochs": len(state["history"]),
                    "train_seconds": state["seconds"],
                    "total_seconds": time.perf_counter() - begun,
                    "parameters": locator.count_params(),
                },
            )
            films.write_films(run)
            runs.write_bytes(run.curves_file, plots.draw_curves(state["history"], kept_epoch=None))
            report.write_report(run)
    return run


def _check(config: Config) -> Config:
    """What can be said before the data is there."""
    config = config.replace(distort=config.distort or "TC")
    if config.distort not in ("T", "TC"):
        raise UserError(
            "Expected distort 'T' or 'TC', to find an object on a larger canvas. "
            f"Received: distort={config.distort!r}"
        )
    if config.transform != "attention":
        raise UserError(
            "Expected transform 'attention', a window, to find an object. "
            f"Received: transform={config.transform!r}; use --recipe colocalization"
        )
    usual = Config(augment=data.default_augmentation(config.distort)).model_dump()
    for key, value in config.model_dump().items():
        if key not in _USED and value not in (None, usual[key]):
            raise UserError(
                f"Expected {key} to be {usual[key]!r}, as it has no part in task 'colocalization'. "
                f"Received: {key}={value!r}"
            )
    if config.batch_size < 2:
        raise UserError(
            "Expected a batch_size of two or more canvases, to find what they have in common. "
            f"Received: batch_size={config.batch_size}"
        )
    return config


def _chosen(config: Config, names: tuple[str, ...], digits: data.Split) -> np.ndarray:
    """Which images are the objects."""
    if config.object_class not in names:
        raise UserError(
            f"Expected object_class to be one of {', '.join(names)}. "
            f"Received: object_class={config.object_class!r}"
        )
    own = np.flatnonzero(digits.labels == names.index(config.object_class))
    if len(own) < config.batch_size:
        raise UserError(
            f"Expected batch_size to be at most {len(own)}, the number of images of the class "
            f"{config.object_class!r}. Received: batch_size={config.batch_size}"
        )
    rng = np.random.default_rng((config.seed, Stream.SCENES, 1))
    return rng.choice(own, config.batch_size, replace=False)


def _draw(
    run: runs.Run, config: Config, epoch: int, locator: keras.Model, scenes: Scenes, zoom: float
) -> None:
    """Write the picture after an epoch: the window on some canvases, and the object's box."""
    some = slice(SHOWN)
    boxes = scenes.boxes_around(locate(locator, scenes.images), zoom)
    overlap = iou(boxes, scenes.boxes)
    shown = Scenes(scenes.images[some], scenes.boxes[some])
    size = tuple(n // CANVAS for n in shown.images.shape[1:3])
    windows = distortions.warp_images(shown.images, shown.params(boxes[some]), size)
    picture = pictures.draw_frame(
        shown.images,
        windows,
        _outline(boxes[some]),
        title=f"Epoch {epoch} of {config.epochs}" if epoch else "Before training",
        subtitle=f"{config.data}, class {config.object_class}, {config.distort} distortion: "
        f"{np.mean(overlap > 0.5):.0%} of {len(overlap)} found. "
        "Orange: the window; violet: where the object is",
        captions=[f"{'✓' if one > 0.5 else '✗'} {one:.2f}" for one in overlap[some]],
        more=[(None, _outline(shown.boxes), ())],
    )
    pictures.save(picture, run.frame_file(epoch))


def _outline(boxes: np.ndarray) -> np.ndarray:
    """The corners `(count, 4, 2)` of boxes, for pictures: pixel centers at integers."""
    left, top, right, bottom = boxes.T - 0.5
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)


# --- the encoder ---------------------------------------------------------------------------------


def build_encoder(shape: tuple[int, int, int], num_classes: int) -> tuple[keras.Model, keras.Model]:
    """A classifier of digits, compiled, and the encoder made of its layers.

    Args:
        shape: Of the windows, in [0, 1].
        num_classes: Of the digits, and one for windows without any.

    Returns:
        The classifier, and the model that describes a window by the last three layers of it: two
        hidden ones and the logits. Each is scaled to unit length, and the squared distance of
        descriptions that have nothing in common is 1.
    """
    windows = keras.Input(shape)
    x = layers.Conv2D(32, 5, 2, padding="same", activation="relu", **models.CHANNELS_LAST)(windows)
    x = layers.Conv2D(64, 3, padding="same", activation="relu", **models.CHANNELS_LAST)(x)
    x = layers.Flatten(**models.CHANNELS_LAST)(layers.MaxPooling2D(2, **models.CHANNELS_LAST)(x))
    dropped = layers.Dropout(0.2)(x)
    hidden = layers.Dense(128, activation="relu")
    second, last = layers.Dense(64, activation="relu"), layers.Dense(num_classes)
    classifier = keras.Model(windows, last(second(hidden(dropped))))
    classifier.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=keras.backend.backend() == "jax",
    )
    parts = [hidden(x)]  # without the dropout
    parts.append(second(parts[-1]))
    parts.append(last(parts[-1]))
    # Two orthogonal vectors of unit length have the squared distance 2.
    scale = (2 * len(parts)) ** -0.5
    parts = [scale * part * ops.rsqrt(_square(part)[:, None] + 0.3) for part in parts]
    return classifier, keras.Model(windows, layers.Concatenate()(parts))


class _Views(keras.utils.PyDataset):
    """Windows of all sizes and the class of the digit in each; one more class if it is not whole.

    From afar the encoder is to be right wherever the digit is, at last only where it fills the
    window: that is what leads the window there. Without the additional class all windows could
    agree on showing, say, the upper half of the object.
    """

    def __init__(self, config: Config, digits: data.Split, patches: int):
        super().__init__()
        self._config, self._digits, self._patches = config, digits, patches

    def __len__(self) -> int:
        return ENCODER_STEPS

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self._config.seed, Stream.ENCODER, index))
        images, labels = self._digits.images, self._digits.labels
        chosen = rng.integers(len(labels), size=ENCODER_BATCH)
        scenes = draw_scenes(images[chosen], images, self._patches, rng)
        least = 1 / CANVAS
        zoom = least + (1 - least) * rng.uniform(size=(ENCODER_BATCH, 1)) ** 2
        place = scenes.normalize(scenes.boxes).reshape(-1, 2, 2).mean(axis=1)
        # Half of them around the digit, the others anywhere.
        room = zoom - least + SLACK
        low, high = np.maximum(place - room, zoom - 1), np.minimum(place + room, 1 - zoom)
        anywhere = rng.uniform(zoom - 1, 1 - zoom, place.shape)
        half = rng.uniform(size=(ENCODER_BATCH, 1)) < 0.5
        center = np.where(half, rng.uniform(low, np.maximum(low, high)), anywhere)
        whole = (np.abs(center - place) <= room + 1e-6).all(axis=-1)
        windows = distortions.warp_images(
            scenes.images, scenes.params(scenes.boxes_around(center, zoom)), images.shape[1:3]
        )
        nothing = labels.max() + 1
        return windows.astype("float32") / 255, np.where(whole, labels[chosen], nothing)


# --- the transformer -----------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="stn")
class Window(transforms.Transform):
    """A window of a fixed size, cut out around `(x, y)`, and always inside the image.

    Args:
        zoom: Its size, as a fraction of the image.
    """

    def __init__(self, zoom: float):
        super().__init__("window", "xy", (0.0, 0.0))
        self.zoom = zoom

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        return {"zoom": self.zoom}

    def move(self, params: Any, points: Any, size: Any, align_corners: bool) -> Any:
        """See `Transform.move`."""
        return cut(params, points, self.zoom)


def cut(centers: Any, points: Any, zoom: Any) -> Any:
    """Where in the image the points of windows are.

    Args:
        centers: Of the windows, `(batch, 2)`, moved inside where they are too far out.
        points: In the windows, `(batch, ..., 2)`. These and all else is normalized.
        zoom: The size of the windows, as a fraction of the image: a number, or `(batch, 1)`.
    """
    zoom = ops.ones_like(centers[:, :1]) * zoom
    centers = ops.clip(centers, zoom - 1, 1 - zoom)
    shape = (-1, *(1,) * (len(points.shape) - 2))
    return ops.reshape(zoom, (*shape, 1)) * points + ops.reshape(centers, (*shape, 2))


@keras.saving.register_keras_serializable(package="stn")
class Centroid(layers.Layer):
    """Where a heat map `(batch, height, width, 1)` is hot: the mean point `(batch, 2)`.

    That is the expected `(x, y)` under the softmax of the map, normalized.
    """

    def call(self, inputs: Any) -> Any:
        """The mean points of a batch of heat maps."""
        height, width = inputs.shape[1:3]
        weights = ops.softmax(ops.reshape(inputs, (-1, height * width)), axis=-1)
        points = grids.regular((height, width)).reshape(-1, 2)
        return ops.matmul(weights, ops.convert_to_tensor(points, weights.dtype))


def build_locator(shape: tuple[int, int, int], window: tuple[int, int]) -> keras.Model:
    """The transformer that points at the object: from canvases to `(windows, centers, grid)`.

    Args:
        shape: Of the canvases.
        window: `(height, width)` of the windows.
    """
    images = keras.Input(shape, name="images")
    pointing = keras.Sequential(
        [
            layers.AveragePooling2D(2, padding="same", **models.CHANNELS_LAST),
            layers.Conv2D(16, 5, 2, padding="same", activation="elu", **models.CHANNELS_LAST),
            layers.Conv2D(32, 5, padding="same", activation="elu", **models.CHANNELS_LAST),
            layers.Conv2D(1, 5, padding="same", **models.CHANNELS_LAST),
            Centroid(),
        ],
        name="localization",
    )
    transformer = stn.SpatialTransformer(
        Window(1 / CANVAS),
        localization=pointing,
        output_size=window,
        data_format="channels_last",
        return_params=True,
        name=models.TRANSFORMER,
    )
    scaled = layers.Rescaling(1 / 255, name="rescale")(images)
    locator = keras.Model(images, transformer(scaled), name="locator")
    # The network points by itself; the head passes that on.
    transformer.head.kernel.assign(np.eye(2))
    transformer.head.trainable = False
    return locator


def locate(locator: keras.Model, images: np.ndarray) -> np.ndarray:
    """The normalized points `(count, 2)` that a locator points at."""
    _, centers, _ = locator.predict_on_batch(images)
    return np.asarray(centers)


# --- what is asked of it -------------------------------------------------------------------------


def triplet_loss(encodings: Any) -> Any:
    """How much less alike the found windows of a batch are than they should be.

    The hinge loss of the paper, over all pairs: the found windows of two canvases are to be nearer
    to each other than the first to a window of its canvas at random, by a margin.

    Args:
        encodings: `(count, 2, n)`, for each canvas that of the found window and that of the random
            one.

    Returns:
        `(count,)`, for each canvas the mean over all others.
    """
    found, elsewhere = encodings[:, 0], encodings[:, 1]
    count = ops.shape(found)[0]
    lengths = _square(found)
    apart = lengths[:, None] + lengths - 2 * ops.matmul(found, ops.transpose(found))
    hinge = ops.relu(apart - _square(found - elsewhere)[:, None] + MARGIN)
    hinge = hinge * (1 - ops.eye(count, dtype=hinge.dtype))
    return ops.sum(hinge, axis=-1) / ops.cast(count - 1, hinge.dtype)


def _square(vectors: Any) -> Any:
    return ops.sum(ops.square(vectors), axis=-1)


def zoom_at(step: int, epochs: int) -> float:
    """The size of the window at a step of the training, as a fraction of the canvas.

    It begins with the whole canvas. A window that does not see the object yet learns from the
    others that all windows should be empty: then they are alike.
    """
    done = min(1.0, step / (ZOOMING * STEPS * epochs))
    return 1 + (1 / CANVAS - 1) * done


class _Triplets(layers.Layer):
    """From canvases, random points and a zoom to the encodings that `triplet_loss` takes."""

    def __init__(self, locator: keras.Model, encoder: keras.Model):
        super().__init__(name="triplets")
        self._transformer = locator.get_layer(models.TRANSFORMER)
        self._encoder = encoder

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        canvases, points, zoom = inputs
        canvases = ops.cast(canvases, "float32") / 255
        centers = self._transformer.localize(canvases, training=training)
        found = self._encode(canvases, centers, zoom)
        elsewhere = self._encode(canvases, points, 1 / CANVAS)
        return ops.stack([found, ops.stop_gradient(elsewhere)], axis=1)

    def _encode(self, canvases: Any, centers: Any, zoom: Any) -> Any:
        regular = grids.regular(self._encoder.input_shape[1:3])[None]
        points = cut(centers, ops.convert_to_tensor(regular, "float32"), zoom)
        return self._encoder(stn.sample(canvases, points, data_format="channels_last"))


def _build_trainer(config: Config, locator: keras.Model, encoder: keras.Model) -> keras.Model:
    """The model that is fitted: the locator under the eyes of the encoder."""
    inputs = [
        keras.Input(locator.input_shape[1:], dtype="uint8"),
        keras.Input((2,)),
        keras.Input((1,)),
    ]
    model = keras.Model(inputs, _Triplets(locator, encoder)(inputs))
    rate: Any = config.learning_rate
    if config.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, config.epochs * STEPS)
    optimizer = keras.optimizers.Adam(rate)
    model.compile(
        optimizer,
        lambda _, encodings: triplet_loss(encodings),
        jit_compile=keras.backend.backend() == "jax",
    )
    optimizer.build(model.trainable_variables)
    return model


class _Steps(keras.utils.PyDataset):
    """The steps of an epoch: all canvases, moved a little, and points to look at beside."""

    def __init__(self, config: Config, images: np.ndarray):
        super().__init__()
        self._config, self._images = config, images
        self.epoch = 1

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        step = (self.epoch - 1) * STEPS + index
        rng = np.random.default_rng((self._config.seed, Stream.COLOCALIZATION, step))
        images = np.zeros_like(self._images)
        count, height, width = images.shape[:3]
        most = np.array([round(SHIFT * n) for n in (height, width)])
        for image, original, (down, right) in zip(
            images, self._images, rng.integers(-most, most + 1, (count, 2)), strict=True
        ):
            part = original[max(-down, 0) : height - max(down, 0)]
            part = part[:, max(-right, 0) : width - max(right, 0)]
            top, left = max(down, 0), max(right, 0)
            image[top : top + part.shape[0], left : left + part.shape[1]] = part
        room = 1 - 1 / CANVAS
        points = rng.uniform(-room, room, (count, 2)).astype("float32")
        zoom = np.full((count, 1), zoom_at(step, self._config.epochs), "float32")
        return (images, points, zoom), np.zeros(count, "float32")
