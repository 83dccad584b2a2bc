"""Image classification sets of TensorFlow Datasets, through the optional extra `tfds`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stn.tool.config import UserError
from stn.tool.data import CHANNELS, TEST_FRACTION, Dataset, Split, carve_mask
from stn.tool.data.folders import stack
from stn.tool.images import convert


def read(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    splits: Sequence[str],
    image_size: int | None,
    color: str,
    seed: int,
) -> Dataset:
    """Read a data set that has an image and a class label; it is downloaded only if it must be.

    A missing split `test` is drawn from `train`: 20 % of every class, chosen by the seed.

    Args:
        name: A name of TensorFlow Datasets, such as `"kmnist"`.
        data_dir: Its folder; None for its own default.
        splits: Any of `"train"` and `"test"`.
        image_size: Height and width to resize to, or None if all images have the same size.
        color: `"auto"`, `"grey"` or `"rgb"`.
        seed: Chooses the test images if there is no such split.

    Returns:
        The data set.

    Raises:
        UserError: If TensorFlow Datasets is not installed, does not know the name, cannot get it,
            or if the set is not one of labeled images.
    """
    try:
        import tensorflow_datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"Expected TensorFlow Datasets to be installed. Received: {error}. "
            'Run: pip install -e ".[tfds]"'
        ) from error
    title = f"tfds:{name}"
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
        image_key, label_key = _keys(builder, title, tensorflow_datasets.features)
        builder.download_and_prepare()  # does nothing where it is prepared already
    except UserError:
        raise
    except Exception as error:  # its errors have no common class
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"Expected a data set of TensorFlow Datasets. Received: {title!r} "
            f"({type(error).__name__}: {reason}). Check the name and --data-dir"
        ) from error

    available = builder.info.splits
    files = {split: split if split in available else "train" for split in splits}
    if missing := sorted(set(files.values()) - set(available)):
        raise UserError(
            f"Expected a split {missing[0]}. Received: {title!r} with {', '.join(available)}. "
            "Choose another data set"
        )

    # The labels come first, without decoding an image: they decide which images are wanted.
    skip = {image_key: tensorflow_datasets.decode.SkipDecoding()}
    names = tuple(builder.info.features[label_key].names)
    labels: dict[str, np.ndarray] = {}
    wanted: dict[str, np.ndarray] = {}
    for split, stored in files.items():
        rows = tensorflow_datasets.as_numpy(builder.as_dataset(split=stored, decoders=skip))
        labels[split] = np.array([row[label_key] for row in rows], np.int32)
        if not len(labels[split]):
            raise UserError(f"Expected images. Received: {title!r} with an empty split {stored}")
        if not 0 <= labels[split].min() <= labels[split].max() < len(names):
            raise UserError(
                f"Expected labels of 0 to {len(names) - 1}. Received: {title!r} with labels of "
                f"{labels[split].min()} to {labels[split].max()} in its split {stored}, as of "
                "images without a class. Choose another data set"
            )
        wanted[split] = np.ones(len(labels[split]), bool)
        if "test" not in available:
            held = carve_mask(labels[split], TEST_FRACTION, seed)
            wanted[split] = held if split == "test" else ~held

    size = None if image_size is None else (image_size, image_size)

    def images(split: str) -> Iterator[np.ndarray]:
        rows = tensorflow_datasets.as_numpy(builder.as_dataset(split=files[split]))
        for row, want in zip(rows, wanted[split], strict=True):
            if want:
                image = row[image_key]
                if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
                    raise UserError(
                        "Expected uint8 images with 1 or 3 channels. Received: "
                        f"{image.dtype} {image.shape} in {title!r}. Choose another data set"
                    )
                yield convert(image, size=size, channels=CHANNELS[color])

    arrays = stack(
        {split: images(split) for split in files},
        {split: [f"{title} {split} {i}" for i in np.flatnonzero(wanted[split])] for split in files},
    )
    made = {split: Split(arrays[split], labels[split][wanted[split]]) for split in files}
    return Dataset(title, names, made.get("train"), made.get("test"))


def _keys(builder: Any, title: str, kinds: Any) -> tuple[str, str]:
    """The names of the one image and the one class label of an example."""
    features = dict(builder.info.features)
    images = [k for k, v in features.items() if isinstance(v, kinds.Image)]
    labels = [k for k, v in features.items() if isinstance(v, kinds.ClassLabel)]
    # Sets with several of a kind say which two belong together.
    pair = builder.info.supervised_keys
    if pair and len(pair) == 2 and pair[0] in images and pair[1] in labels:
        return pair[0], pair[1]
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            "Expected a data set of images with one class label each. Received: "
            f"{title!r} with {', '.join(features)}. Choose another data set"
        )
    return images[0], labels[0]
