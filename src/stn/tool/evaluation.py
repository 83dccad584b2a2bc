"""What a trained model is worth, and what it says about images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from stn.tool import data, runs
from stn.tool.config import Config, UserError, select_backend
from stn.tool.data import distortions, folders

_TEST = 2  # the stream of randomness of the test images; training has the others


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
    run = _open(run)
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
    if list(class_names) != names:
        raise UserError(
            f"Expected the classes the run was trained on, {_some(names)}. "
            f"Received: {config.data} with {_some(class_names)}"
        )
    images = distorted_test(config, test)
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
) -> list[dict[str, Any]]:
    """Classify image files.

    Images may be grey or in color, of any size, and dark on light as well as light on dark: they
    are brought to what the model was trained on, light on dark, by the brightness of their border.

    Args:
        run: A run, or its folder.
        images: One image file or several.
        backend: Another backend than the run's.

    Returns:
        For each image `{"image": path, "class": name, "probability": float}`.

    Raises:
        UserError: If the run, or any of the files, cannot be used.

    Example:
        >>> predict("runs/affine", "seven.png")  # doctest: +SKIP
        [{'image': 'seven.png', 'class': '7', 'probability': 0.99}]
    """
    paths = [images] if isinstance(images, str | os.PathLike) else list(images)
    run = _open(run)
    if not paths:
        return []
    about = run.dataset
    batch = np.stack([_prepare(path, about) for path in paths])
    model = load_model(run, backend or run.config.backend)
    probabilities = predict_probabilities(model, batch)
    return [
        {
            "image": os.fspath(path),
            "class": about["class_names"][row.argmax()],
            "probability": float(row.max()),
        }
        for path, row in zip(paths, probabilities, strict=True)
    ]


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

    import stn.layers  # noqa: F401  (registers the layer for loading)

    try:
        return keras.saving.load_model(run.model_file, compile=False)
    except Exception as error:
        raise UserError(
            f"Expected a readable model. Received: {run.model_file} ({error})"
        ) from error


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
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Compare class probabilities with the truth.

    Args:
        probabilities: `(count, classes)`, rows that sum to 1.
        labels: `(count,)` integers in `[0, classes)`.
        class_names: The names of the classes.

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
    return {
        "count": len(labels),
        "accuracy": float(np.mean(guesses == labels)),
        "loss": float(-np.mean(np.log(np.clip(true, 1e-7, 1.0)))),
        "per_class": {
            name: {"accuracy": float(hit / n) if n else None, "count": int(n)}
            for name, hit, n in zip(class_names, hits, counts, strict=True)
        },
        "confusion": confusion.tolist(),
        "class_names": list(class_names),
    }


def distorted_test(config: Config, test: data.Split) -> np.ndarray:
    """The test images as the model of a configuration sees them: distorted, fixed by the seed."""
    return distortions.distort_all(test.images, distortion_of(config), (config.seed, _TEST))


def distortion_of(config: Config) -> distortions.Distortion:
    """The distortion of a configuration; the usual one of its data if it leaves that open."""
    return distortions.DISTORTIONS[config.distort or data.default_distortion(config.data)]


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


def _prepare(path: str | os.PathLike[str], about: dict[str, Any]) -> np.ndarray:
    """An image file as the model wants it: size and channels, light on dark, on its canvas."""
    (height, width, channels), canvas = about["image_shape"], about["input_shape"]
    image = folders.read_image(path, channels=channels)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    if np.median(border) > 127:
        image = 255 - image
    if list(image.shape) == canvas:
        return image
    if image.shape[:2] != (height, width):
        # Keep the aspect ratio: widen the dark border before resizing.
        longest = max(image.shape[0] / height, image.shape[1] / width)
        image = _center(image, (round(height * longest), round(width * longest)))
        image = folders.resize(image, (height, width))
    return _center(image, canvas[:2])


def _center(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Put an image in the middle of a black one that is at least as large."""
    framed = np.zeros((*size, image.shape[2]), "uint8")
    top, left = ((n - m) // 2 for n, m in zip(size, image.shape, strict=False))
    framed[top : top + image.shape[0], left : left + image.shape[1]] = image
    return framed


def _open(run: runs.Run | str | os.PathLike[str]) -> runs.Run:
    return run if isinstance(run, runs.Run) else runs.Run.open(run)


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
