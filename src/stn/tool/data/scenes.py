"""Objects somewhere on larger canvases, and the boxes around them (Jaderberg et al. 2015)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from stn.tool.data import distortions

CANVAS = 3
"""Times the size of the object: the canvas."""


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Canvases with an object on each.

    A box is the left, top, right and bottom edge of something.

    Attributes:
        images: uint8 `(count, height, width, channels)`.
        boxes: `(count, 4)`, where the objects are, in pixels.
    """

    images: np.ndarray
    boxes: np.ndarray

    def boxes_around(self, centers: np.ndarray, zoom: Any) -> np.ndarray:
        """The boxes `(count, 4)` around points of the canvases, in pixels; none leaves them.

        Args:
            centers: Normalized points `(count, 2)`, x and y.
            zoom: The size of a box, where 1 is that of the canvas; `(count, 1)` or a number.
        """
        centers = np.clip(centers, zoom - 1, 1 - zoom)
        height, width = self.images.shape[1:3]
        edges = np.concatenate([centers - zoom, centers + zoom], axis=-1)
        return (edges + 1) / 2 * np.array([width, height, width, height])

    def normalize(self, boxes: np.ndarray) -> np.ndarray:
        """The same edges, normalized."""
        height, width = self.images.shape[1:3]
        return 2 * boxes / np.array([width, height, width, height]) - 1

    def params(self, boxes: np.ndarray) -> np.ndarray:
        """The affine parameters `(count, 6)` that cut boxes out."""
        low, high = np.split(self.normalize(boxes), 2, axis=-1)
        params = np.zeros((len(boxes), 2, 3), "float32")
        params[:, 0, 0], params[:, 1, 1] = ((high - low) / 2).T
        params[:, :, 2] = (low + high) / 2
        return params.reshape(-1, 6)


def draw_scenes(
    objects: np.ndarray, sources: np.ndarray, patches: int, rng: np.random.Generator
) -> Scenes:
    """Put each object somewhere on a canvas of its own, and clutter over it.

    Args:
        objects: uint8 `(count, height, width, channels)`.
        sources: The images whose patches are the clutter.
        patches: How many patches on a canvas.
        rng: Where the randomness comes from.

    Example:
        >>> digits = np.full((5, 4, 4, 1), 255, "uint8")
        >>> draw_scenes(digits, digits, 0, np.random.default_rng(0)).images.shape
        (5, 12, 12, 1)
    """
    count, height, width, channels = objects.shape
    images = np.zeros((count, CANVAS * height, CANVAS * width, channels), np.uint8)
    top = rng.integers((CANVAS - 1) * height + 1, size=count)
    left = rng.integers((CANVAS - 1) * width + 1, size=count)
    rows = top[:, None, None] + np.arange(height)[:, None]
    columns = left[:, None, None] + np.arange(width)
    images[np.arange(count)[:, None, None], rows, columns] = objects
    distortions.scatter(images, sources, patches, rng)
    return Scenes(images, np.stack([left, top, left + width, top + height], axis=-1))


def iou(boxes: Any, others: Any) -> np.ndarray:
    """The overlap of pairs of boxes: intersection over union, `(count,)`.

    Args:
        boxes: `(count, 4)`, left, top, right and bottom edge.
        others: Likewise.

    Example:
        >>> iou([[0, 0, 2, 2]], [[1, 0, 3, 2]]).round(3).tolist()
        [0.333]
    """
    boxes, others = np.asarray(boxes, "float64"), np.asarray(others, "float64")
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, 2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [(one[:, 2:] - one[:, :2]).prod(axis=-1) for one in (boxes, others)]
    return shared / (sum(areas) - shared)
