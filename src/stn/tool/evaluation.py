"""What a trained model is worth, and what it says about images."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from stn.tool import data, runs
from stn.tool.config import Config, UserError, select_backend
from stn.tool.data import addition, distortions
from stn.tool.images import (
    OnError,
    convert,
    find_images,
    read_frames,
    read_mark,
    resize,
    write_marked,
)

TEST = 2
"""The stream of randomness of the test images; training has the others."""

_PAIRS = 1  # of the streams within one
_BATCH_BYTES = 2**26  # of images predicted at once
_ALIKE = 32  # of 255: colors that differ by less are one background
_LEAST_CONTRAST = 32  # of ink; what is fainter is taken for noise and not brightened further


def evaluate(
    run: runs.Run | str | os.PathLike[str],
    *,
    data: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    distort: str | None = None,
    backend: str | None = None,
) -> dict[str, Any]:
    """Test the best model of a run. Only test images are read.

    Args:
        run: A run, or its folder.
        data: Another data set than the run's, with the same classes.
        data_dir: Folder that holds the files of the data set; the run's by default.
        distort: Another distortion than the run's.
        backend: Another backend than the run's.

    Returns:
        `accuracy` and `loss` over all images, their `count`, `per_class` (`{name: {accuracy,
        count}}`, None where there is no image), `confusion` (a row for every true class, a
        column for every predicted one) and `class_names`.

    Raises:
        UserError: If the run or the data cannot be used.

    Example:
        >>> evaluate("runs/affine")["accuracy"]  # doctest: +SKIP
        0.87
    """
    run = open_run(run)
    check_task(run, "to test it on labelled images", "classification", "addition")
    config = run.config
    other = data is not None and data != config.data
    changes = {
        "data": data,
        "data_dir": None if data_dir is None else os.fspath(data_dir),
        "distort": distort,
        "backend": backend,
    }
    config = config.replace(**{k: v for k, v in changes.items() if v is not None})
    if other and data_dir is None:
        config = config.replace(data_dir=None)
    model = load_model(run, config.backend)
    names, channels = run.dataset["class_names"], run.dataset["image_shape"][-1]
    class_names, test = load_split(config, "test", channels=channels)
    class_names, test = for_task(config, class_names, test, TEST)
    if list(class_names) != names:
        raise UserError(
            f"Expected the classes the run was trained on, {_some(names)}. "
            f"Received: {config.data} with {_some(class_names)}"
        )
    images = distorted_test(config, test, run.dataset.get("background_color"))
    if images.shape[1:] != model.input_shape[1:]:
        raise UserError(
            f"Expected images of shape {model.input_shape[1:]}, as in training. "
            f"Received: {images.shape[1:]} ({config.data}, distortion {config.distort})"
        )
    return score(predict_probabilities(model, images), test.labels, names)


def predict(
    run: runs.Run | str | os.PathLike[str],
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    backend: str | None = None,
    save_straightened: str | os.PathLike[str] | None = None,
    on_error: OnError | None = None,
) -> list[dict[str, Any]]:
    """Classify images.

    They may be grey or in color, of any size, and dark on light as well as light on dark: by the
    brightness of their border they are brought to what the model was trained on, unless these were
    images of both kinds, as photographs are.
    For a model that was trained on a data set of ours the border becomes black and the brightest
    ink white.

    Args:
        run: A run, its folder, or a `.keras` file in that folder.
        images: Files, folders, patterns or `-`, one of them or several; see
            `stn.tool.images.find_images`.
        backend: Another backend than the run's.
        save_straightened: A folder for what the transformer makes of each image, one PNG each:
            `a.png` for a file `a.jpg`, `more/a.png` for `more/a.jpg` in a folder that was given,
            `a#0.png` for the first frame of `a.gif`. Where there is already another file of that
            name, a number is appended; only what this model made of the same image is replaced.
        on_error: Called with a `UserError` for each file that cannot be used, which is then left
            out. By default the first of them is raised.

    Returns:
        For each image `{"image": path, "class": name, "probability": float}`, and with
        `save_straightened` the path of that file as `"straightened"`. Each frame of an animation,
        and each page of a TIFF, is an image of its own, `path#0`, `path#1` and so on.

    Raises:
        UserError: If the run, or any of the files, cannot be used.

    Example:
        >>> predict("runs/affine", "seven.png")  # doctest: +SKIP
        [{'image': 'seven.png', 'class': '7', 'probability': 0.99}]
    """
    return list(
        predict_each(
            run, images, backend=backend, save_straightened=save_straightened, on_error=on_error
        )
    )


def predict_each(
    run: runs.Run | str | os.PathLike[str],
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    backend: str | None = None,
    save_straightened: str | os.PathLike[str] | None = None,
    on_error: OnError | None = None,
) -> Iterator[dict[str, Any]]:
    """Classify images as `predict` does, but give each result as soon as it is there.

    The files are read and classified in batches, so that any number of them needs the memory of
    one batch.

    Args:
        run: As in `predict`.
        images: As in `predict`; may be an iterator without an end.
        backend: As in `predict`.
        save_straightened: As in `predict`.
        on_error: As in `predict`.

    Returns:
        An iterator of what `predict` gives as a list.

    Raises:
        UserError: As `predict`, when the first result is asked for, or at the file in question.

    Example:
        >>> for found in predict_each("runs/affine", "scans"):  # doctest: +SKIP
        ...     print(found["image"], found["class"])
    """
    run = open_run(run)
    check_task(run, "to classify images one by one", "classification")
    about = run.dataset
    straightened = None if save_straightened is None else _Straightened(run, save_straightened)
    inputs = _read_inputs(
        [images] if isinstance(images, str | os.PathLike) else images,
        run,
        leave_out=save_straightened,
        on_error=on_error or _raise,
    )
    shape = tuple(about["input_shape"])
    batch_size = max(1, min(256, _BATCH_BYTES // math.prod(shape)))
    model, size = None, batch_size
    while chunk := list(itertools.islice(inputs, batch_size)):
        if model is None:
            model = load_model(run, backend or run.config.backend)
            if straightened is not None:
                model = _with_straightened(model)
            size = len(chunk)  # all there are, or as many as any batch: each size is compiled anew
        batch = np.zeros((size, *shape), np.uint8)
        for i, (_, _, image) in enumerate(chunk):
            batch[i] = image
        found = model.predict_on_batch(batch)
        probabilities = np.array(found if straightened is None else found["probabilities"])
        for i, (name, place, _) in enumerate(chunk):
            record = {
                "image": name,
                "class": about["class_names"][probabilities[i].argmax()],
                "probability": float(probabilities[i].max()),
            }
            if straightened is not None:
                record["straightened"] = straightened.save(found["straight"][i], place, name)
            yield record


def read_one(run: runs.Run, image: str | os.PathLike[str]) -> tuple[str, np.ndarray]:
    """The name of one image, and its pixels as the model of a run wants them.

    Of an animation that is the first frame.

    Raises:
        UserError: If it is not an image.
    """
    if Path(image).is_dir():
        raise UserError(f"Expected an image file. Received: {os.fspath(image)!r}, a folder")
    inputs = _read_inputs([image], run, leave_out=None, on_error=_raise)
    name, _, pixels = next(inputs)
    return name, pixels


def open_run(run: runs.Run | str | os.PathLike[str]) -> runs.Run:
    """Open a run by its folder, or by a `.keras` file in it, which is then its model.

    Raises:
        UserError: If there is no run.
    """
    if isinstance(run, runs.Run):
        return run
    path = Path(run)
    if not path.is_file():
        return runs.Run.open(path)
    expected = f"Expected a run folder, or a .keras file inside one. Received: {str(path)!r}"
    if path.suffix != ".keras":
        raise UserError(f"{expected}, another file")
    try:
        opened = runs.Run.open(path.parent)
    except UserError as error:
        raise UserError(f"{expected}, which is not in a run folder") from error
    opened.model_file = path
    return opened


def load_model(run: runs.Run, backend: str | None) -> Any:
    """The best model of a run, on a backend.

    Raises:
        UserError: If there is none yet, or it cannot be read.
    """
    if not run.model_file.exists():
        raise UserError(
            f"Expected a run with a trained model. Received: {run.path}, which has finished no "
            f"epoch; go on with: stn train --resume {run.path}"
        )
    select_backend(backend)
    import keras

    import stn.models  # noqa: F401  (registers the layers for loading)

    try:
        model = keras.saving.load_model(run.model_file, compile=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"Expected a readable model. Received: {run.model_file} ({reason})"
        ) from error
    about = run.dataset
    shapes = (*about["input_shape"],), (len(about["class_names"]),)
    if (found := (model.input_shape[1:], model.output_shape[1:])) != shapes:
        raise UserError(
            f"Expected the model of {run.path}, from {shapes[0]} to {shapes[1]}. "
            f"Received: {run.model_file}, from {found[0]} to {found[1]}"
        )
    return model


def predict_probabilities(model: Any, images: np.ndarray, *, batch_size: int = 1024) -> np.ndarray:
    """Class probabilities `(count, classes)` for images `(count, height, width, channels)`."""
    batch_size = min(batch_size, max(len(images), 1))
    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        count = len(part)
        if count < batch_size:  # a batch of another size would be compiled anew
            part = np.concatenate([part, np.zeros_like(images[: batch_size - count])])
        parts.append(np.array(model.predict_on_batch(part))[:count])
    return np.concatenate(parts)


def score(
    probabilities: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    label_smoothing: float = 0.0,
) -> dict[str, Any]:
    """Compare class probabilities with the truth.

    Args:
        probabilities: `(count, classes)`, rows that sum to 1.
        labels: `(count,)` integers in `[0, classes)`.
        class_names: The names of the classes.
        label_smoothing: Of the `loss`: the share of every label that goes to all classes alike.

    Returns:
        As `evaluate`.

    Example:
        >>> score(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]), "ab")["accuracy"]
        0.5
    """
    classes = len(class_names)
    guesses = probabilities.argmax(-1)
    confusion = np.bincount(labels * classes + guesses, minlength=classes**2)
    confusion = confusion.reshape(classes, classes)
    counts, hits = confusion.sum(1), confusion.diagonal()
    true = probabilities[np.arange(len(labels)), labels].astype("float64")
    loss = -np.mean(np.log(np.clip(true, 1e-7, 1.0)))
    if label_smoothing:
        others = -np.mean(np.log(np.clip(probabilities, 1e-7, 1.0)), dtype="float64")
        loss = (1 - label_smoothing) * loss + label_smoothing * others
    return {
        "count": len(labels),
        "accuracy": float(np.mean(guesses == labels)),
        "loss": float(loss),
        "per_class": {
            name: {"accuracy": float(hit / n) if n else None, "count": int(n)}
            for name, hit, n in zip(class_names, hits, counts, strict=True)
        },
        "confusion": confusion.tolist(),
        "class_names": list(class_names),
    }


def background_of(images: np.ndarray) -> tuple[np.ndarray | None, str]:
    """What most of some images have along their border.

    Args:
        images: uint8 array `(count, height, width, channels)`.

    Returns:
        Its color, float32 `(channels,)`, and whether that is `"dark"` or `"light"`; or None and
        `"mixed"`, as in photographs, where fewer than nine of ten images have one color, or nearly
        that, along at least half of their border.
    """
    some = images[:: max(1, len(images) // 1000)]
    borders = np.concatenate([some[:, 0], some[:, -1], some[:, :, 0], some[:, :, -1]], axis=1)
    color = np.median(np.median(borders, axis=1), axis=0).astype("float32")
    alike = (np.abs(borders - color) <= _ALIKE).all(axis=-1).mean(axis=1) >= 0.5
    if alike.mean() < 0.9:
        return None, "mixed"
    return color, "light" if np.median(color) > 127 else "dark"


def distorted_test(
    config: Config, test: data.Split, background: Sequence[float] | None
) -> np.ndarray:
    """The test images as the model of a configuration sees them: distorted, fixed by the seed."""
    distortion = distortion_of(config, background)
    return distortions.distort_all(test.images, distortion, (config.seed, TEST))


def distortion_of(
    config: Config, background: Sequence[float] | None = None
) -> distortions.Distortion:
    """The distortion of a configuration; the usual one of its data if it leaves that open.

    Args:
        config: What was asked.
        background: See `stn.tool.data.distortions.Distortion.on`.
    """
    distortion = distortions.DISTORTIONS[config.distort or data.default_distortion(config.data)]
    return dataclasses.replace(distortion.on(background), apart=config.task == "addition")


def for_task(
    config: Config, class_names: Sequence[str], split: data.Split, stream: int
) -> tuple[tuple[str, ...], data.Split]:
    """The classes, and validation or test images, as the task of a configuration has them.

    Args:
        config: What was asked.
        class_names: Those of the data.
        split: From the data.
        stream: Of randomness.
    """
    if config.task != "addition":
        return tuple(class_names), split
    if split.images.shape[-1] != 1:
        raise UserError(
            "Expected grey images to add, each of which becomes one channel. "
            f"Received: {split.images.shape[-1]} channels; use --color grey"
        )
    return (
        addition.sums(class_names),
        addition.pair_all(split, (config.seed, stream, _PAIRS)),
    )


def check_task(run: runs.Run, purpose: str, *tasks: str) -> None:
    """Make sure that a run was trained for one of the tasks that something can be done with.

    Raises:
        UserError: If it was trained for another.
    """
    if (task := run.config.task) not in tasks:
        raise UserError(
            f"Expected a run with task {' or '.join(map(repr, tasks))} {purpose}. "
            f"Received: {run.path} with task {task!r}"
        )


def load_split(
    config: Config, split: str, *, channels: int | None = None
) -> tuple[tuple[str, ...], data.Split]:
    """The class names and the `"train"` or `"test"` images of a configuration; no others are read.

    Args:
        config: What was asked.
        split: `"train"` or `"test"`.
        channels: 1 or 3, where the configuration leaves the color to the images.
    """
    color = config.color
    if color == "auto" and channels is not None:
        color = "grey" if channels == 1 else "rgb"
    dataset = data.load(
        config.data,
        data_dir=config.data_dir,
        splits=(split,),
        image_size=config.image_size,
        color=color,
        mirror=config.mirror,
        seed=config.seed,
    )
    return dataset.class_names, getattr(dataset, split)


class _Straightened:
    """The folder of what a transformer made of images."""

    def __init__(self, run: runs.Run, folder: str | os.PathLike[str]):
        if run.config.transform == "none":
            raise UserError(
                "Expected a run with a transformer, to save what it straightens. "
                f"Received: {run.path}, trained with --transform none"
            )
        self._folder, self._run = Path(folder), run
        self._numbers: dict[str, int] = {}  # the last one of each name that was there already
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Expected a folder to write to. Received: {str(folder)!r} ({error.strerror})"
            ) from error

    def save(self, image: np.ndarray, place: str, name: str) -> str:
        """Write floats in [0, 1] as a PNG; gives its path."""
        # An escaped text, because names of files need not be valid Unicode.
        mark = json.dumps([str(Path(p).absolute()) for p in (name, self._run.model_file)])
        number = self._numbers.get(place, 1)
        while True:
            path = self._folder / (f"{place}.png" if number == 1 else f"{place}-{number}.png")
            if not os.path.lexists(path) or read_mark(path) == mark:
                break
            number += 1
            self._numbers[place] = number
        values = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        with runs.atomic(path) as temporary:
            write_marked(temporary, values, mark)
        return str(path)


def _with_straightened(model: Any) -> Any:
    """The same model with what its transformer makes of the images besides."""
    import keras

    from stn import models

    straight, _, _ = models.looks(model)[0]
    return keras.Model(model.input, {"probabilities": model.output, "straight": straight})


def _read_inputs(
    paths: Iterable[str | os.PathLike[str]],
    run: runs.Run,
    *,
    leave_out: str | os.PathLike[str] | None,
    on_error: OnError,
) -> Iterator[tuple[str, str, np.ndarray]]:
    """The name of each image, where to write about it, and the image as the model wants it."""
    config, about = run.config, run.dataset
    (height, width, channels), canvas = about["image_shape"], about["input_shape"]
    enough = 4 * max(height, canvas[0]), 4 * max(width, canvas[1])
    own = config.data.startswith(("folder:", "tfds:"))
    kind, color = about.get("background", "dark"), about.get("background_color")
    for found in find_images(paths, on_error=on_error, leave_out=leave_out):
        place = str(Path(found.place).with_suffix(""))
        try:
            for name, image in read_frames(
                found.source, name=found.name, enough=enough, channels=channels
            ):
                if own and config.image_size:  # as in training, where the aspect ratio was not kept
                    image = convert(image, size=(height, width))
                image = _prepare(image, (height, width), canvas[:2], kind, color, as_is=own)
                yield name, place + name.removeprefix(found.name), image
        except UserError as error:
            on_error(error)


def _prepare(
    image: np.ndarray,
    size: tuple[int, int],
    canvas: Sequence[int],
    kind: str = "dark",
    color: Sequence[float] | None = None,
    *,
    as_is: bool,
) -> np.ndarray:
    """An image on the background and in the size of the training images, amid their canvas.

    Paper is never quite white, nor is ink black; but our own data sets are, and a model that was
    trained on them is at a loss with less. So unless `as_is`, all of the contrast is used.
    """
    small = resize(image, size)  # in which a thin frame around a scan has vanished
    border = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    paper = np.rint(np.median(border, axis=0)).astype(np.uint8)
    light = bool(np.median(border) > 127)
    inverted = kind != "mixed" and light != (kind == "light")
    if list(image.shape[:2]) != list(canvas):
        beside = paper
        if as_is and kind == "mixed":
            beside = np.zeros_like(paper)  # as in training; see `Distortion.on`
        elif as_is:
            trained = np.rint(color or [255 * (kind == "light")] * len(paper)).astype(np.uint8)
            beside = 255 - trained if inverted else trained
        image = _center(_fit(image, size, beside), canvas, beside)
    if inverted:
        image, small, paper = 255 - image, 255 - small, 255 - paper
    if as_is:
        return image
    ink = np.max(small.astype(int) - paper, initial=_LEAST_CONTRAST)
    return np.rint(np.clip((image.astype(int) - paper) * (255 / ink), 0, 255)).astype(np.uint8)


def _fit(image: np.ndarray, size: tuple[int, int], beside: np.ndarray) -> np.ndarray:
    """Resize, but keep the aspect ratio: with a border of one color where the image ends."""
    if image.shape[:2] == size:
        return image
    # First to no more than four times the size, lest the border of a long line fill the memory.
    excess = max(n / (4 * m) for n, m in zip(image.shape, size, strict=False))
    if excess > 1:
        height, width = (max(1, round(n / excess)) for n in image.shape[:2])
        image = resize(image, (height, width))
    longest = max(n / m for n, m in zip(image.shape, size, strict=False))
    return resize(_center(image, [round(m * longest) for m in size], beside), size)


def _center(image: np.ndarray, size: Sequence[int], beside: np.ndarray) -> np.ndarray:
    """Put an image in the middle of one of a single color that is at least as large."""
    framed = np.full((*size, image.shape[2]), beside, np.uint8)
    top, left = ((n - m) // 2 for n, m in zip(size, image.shape, strict=False))
    framed[top : top + image.shape[0], left : left + image.shape[1]] = image
    return framed


def _raise(error: UserError) -> NoReturn:
    raise error


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
