"""What a trained model says about images that it is given: one by one, folders, or a stream."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from stn.tool import runs
from stn.tool.config import UserError
from stn.tool.evaluation import check_task, load_model, open_run
from stn.tool.images import (
    OnError,
    convert,
    find_images,
    read_frames,
    read_mark,
    resize,
    write_marked,
)

_BATCH_BYTES = 2**26  # of images predicted at once
_LEAST_CONTRAST = 32  # of ink; what is fainter is taken for noise and not brightened further


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
    images of both kinds, as photographs are, or images of your own in color.
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
    kind, color = about.get("background", "dark"), about.get("background_color")
    # Images of ours are drawings on a clean background; photographs and the user's own are not.
    as_is = kind == "mixed" or config.data.startswith(("folder:", "tfds:"))
    for found in find_images(paths, on_error=on_error, leave_out=leave_out):
        place = str(Path(found.place).with_suffix(""))
        try:
            for name, image in read_frames(
                found.source, name=found.name, enough=enough, channels=channels
            ):
                if as_is and config.image_size:  # as in training, whatever the aspect
                    image = convert(image, size=(height, width), channels=channels)
                image = _prepare(image, (height, width), canvas[:2], kind, color, as_is=as_is)
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
    if as_is and image.shape[2] == 3:
        inverted = False  # a photograph is not a negative of another
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
