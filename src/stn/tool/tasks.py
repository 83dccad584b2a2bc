"""The images that a configuration asks for: loaded, distorted, and as its task has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from stn.tool import data
from stn.tool.config import Config, Stream, UserError
from stn.tool.data import addition, distortions

_PAIRS = 1  # a stream within that of the images
_ALIKE = 32  # of 255: colors that differ by less are one background


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


def check_unseen(config: Config, about: dict[str, Any]) -> None:
    """Make sure that no test image of a configuration is one that a run was trained on.

    Args:
        config: That of the run, with the same data.
        about: What the data were; see `stn.tool.runs.Run.dataset`.

    Raises:
        UserError: If files of a `folder:` whose test images are drawn were added or removed.
    """
    if about.get("training_files") != data.training_files(config.data, config.seed):
        raise UserError(
            "Expected the images the run was trained with: which of a folder are the test images "
            f"depends on its files. Received: {config.data!r}, where some were added, removed or "
            "renamed since. Put them back, or train again"
        )


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


def distorted_test(
    config: Config, test: data.Split, background: Sequence[float] | None
) -> np.ndarray:
    """The test images as the model of a configuration sees them: distorted, fixed by the seed."""
    distortion = distortion_of(config, background)
    return distortions.distort_all(test.images, distortion, (config.seed, Stream.TEST))


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
