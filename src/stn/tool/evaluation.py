"""What a trained model is worth on the test images, and what it needs for that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stn.tool import runs
from stn.tool.config import Stream, UserError, locate, select_backend
from stn.tool.data import distortions
from stn.tool.tasks import check_unseen, distorted_test, for_task, load_split


def evaluate(
    run: runs.Run | str | os.PathLike[str],
    *,
    data: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    distort: str | None = None,
    backend: str | None = None,
) -> dict[str, Any]:
    """Test the model of a run. Only test images are read.

    Args:
        run: A run, or its folder.
        data: Another data set than the run's, with the same classes or some of them.
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
    check_task(run, "to test it on labeled images", "classification", "addition")
    config = run.config
    data = data and locate(data)
    other = data is not None and data != config.data
    changes = {
        "data": data,
        "data_dir": None if data_dir is None else os.fspath(data_dir),
        "distort": distort,
        "backend": backend,
    }
    config = config.replace(**{k: v for k, v in changes.items() if v is not None})
    if other:  # which does not lie where that of the run does
        config = config.replace(mirror=None, data_dir=changes["data_dir"])
    model = load_model(run, config.backend)
    names, channels = run.dataset["class_names"], run.dataset["image_shape"][-1]
    if not other:
        check_unseen(config, run.dataset)
    class_names, test = load_split(config, "test", channels=channels)
    class_names, test = for_task(config, class_names, test, Stream.TEST)
    if unknown := [name for name in class_names if name not in names]:
        raise UserError(
            f"Expected classes the run was trained on, {_some(names)}. "
            f"Received: {config.data} with {_some(class_names)}, among them {unknown[0]!r}"
        )
    labels = np.array([names.index(name) for name in class_names])[test.labels]
    images = distorted_test(config, test, run.dataset.get("background_color"))
    if images.shape[1:] != model.input_shape[1:]:
        raise UserError(
            f"Expected images of shape {model.input_shape[1:]}, as in training. "
            f"Received: {images.shape[1:]} ({config.data}, distortion {config.distort})"
        )
    return score(predict_probabilities(model, images), labels, names)


def open_run(run: runs.Run | str | os.PathLike[str]) -> runs.Run:
    """Open a run by its folder, or by a `.keras` file in it, which is then its model.

    Raises:
        UserError: If there is no run.
    """
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
    """The model of a run, on a backend.

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


def predict_probabilities(
    model: Any, images: np.ndarray, *, batch_size: int | None = None
) -> np.ndarray:
    """Class probabilities `(count, classes)` for images `(count, height, width, channels)`."""
    batch_size = batch_size or distortions.at_once(images.shape[1:3])
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


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
