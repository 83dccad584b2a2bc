"""The only owner of coordinates: how pixels and normalized points relate.

A point is `(x, y)`, normalized to [-1, 1] over the image: x runs right along the width, y runs
down along the height; in a volume it is `(x, y, z)`, and z runs along the depth. What exactly -1
and 1 mean is the corner convention:

- `align_corners=False` (default): the outer **edges** of the corner pixels, so that a pixel is an
  area and resizing keeps its meaning;
- `align_corners=True`: the **centers** of the corner pixels.

Both are those of `torch.nn.functional.grid_sample`. A pixel coordinate is 0 at the center of the
first pixel and `size - 1` at the center of the last.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


def to_pixel(coordinate: Any, size: int, align_corners: bool) -> Any:
    """Convert normalized coordinates along one axis to pixel coordinates.

    Args:
        coordinate: Array or tensor of any shape and float type, normalized.
        size: Number of pixels along the axis, at least 1.
        align_corners: Corner convention, see the module.

    Returns:
        Pixel coordinates, same shape and type.

    Example:
        >>> to_pixel(np.array([-1.0, 0.0, 1.0]), 4, align_corners=False).tolist()
        [-0.5, 1.5, 3.5]
    """
    # The product is formed about the center, where the coordinates of an identity grid multiply
    # back to half integers without rounding; the offset is then added exactly.
    return stretch(coordinate, size, align_corners) + (size - 1) / 2


def stretch(distance: Any, size: int, align_corners: bool) -> Any:
    """Convert normalized distances along one axis to pixels.

    On an axis of one pixel under `align_corners=True` there is none: 0, even of an infinite one.

    Args:
        distance: Array or tensor of any shape and float type, normalized.
        size: Number of pixels along the axis, at least 1.
        align_corners: Corner convention, see the module.

    Returns:
        Distances in pixels, same shape and type.

    Example:
        >>> stretch(np.array([1.0, np.inf]), 1, align_corners=True).tolist()
        [0.0, 0.0]
    """
    half = half_extent(size, align_corners)
    return distance * half if half else 0.0 / (abs(distance) + 1.0)


def to_normalized(pixel: Any, size: int, align_corners: bool) -> Any:
    """Convert pixel coordinates along one axis to normalized ones; the inverse of `to_pixel`.

    On an axis of one pixel under `align_corners=True` every point maps to 0, the center.

    Args:
        pixel: Array or tensor of any shape, in pixels.
        size: Number of pixels along the axis, at least 1.
        align_corners: Corner convention, see the module.

    Returns:
        Normalized coordinates, same shape.

    Example:
        >>> to_normalized(np.array([0.0, 3.0]), 4, align_corners=True).tolist()
        [-1.0, 1.0]
    """
    return (pixel - (size - 1) / 2) / (half_extent(size, align_corners) or 1.0)


def half_extent(size: int, align_corners: bool) -> float:
    """Half the distance in pixels between the normalized coordinates -1 and 1 along an axis.

    Example:
        >>> half_extent(28, False), half_extent(28, True)
        (14.0, 13.5)
    """
    return (size - 1) / 2 if align_corners else size / 2


def extents(size: tuple[int, ...], align_corners: bool) -> tuple[float, ...]:
    """How many pixels a normalized unit spans along each axis, in the order of points: x, y[, z].

    Transforms that turn need it to turn in pixel space, so that a non-square image is not sheared.

    Args:
        size: `(height, width)` or `(depth, height, width)` of the image that is read.
        align_corners: Corner convention, see the module.

    Example:
        >>> extents((20, 40), align_corners=False)
        (20.0, 10.0)
    """
    halves = [half_extent(n, align_corners) for n in reversed(size)]
    # One-pixel axes under align_corners=True have no extent; nothing can turn there.
    return tuple(half or max(halves) or 1.0 for half in halves)


@functools.lru_cache(maxsize=64)
def regular(size: tuple[int, ...], align_corners: bool = False) -> np.ndarray:
    """The centers of all pixels of an image, as normalized points.

    Args:
        size: `(height, width)` or `(depth, height, width)`, each at least 1.
        align_corners: Corner convention, see the module.

    Returns:
        A read-only float64 array `(*size, len(size))` of points `(x, y[, z])`. Along an axis of
        one pixel the coordinate is 0 in both conventions, as in
        `torch.nn.functional.affine_grid`.

    Example:
        >>> regular((1, 2)).tolist()
        [[[-0.5, 0.0], [0.5, 0.0]]]
    """
    axes = [to_normalized(np.arange(n), n, align_corners) for n in size]
    points = np.stack(np.meshgrid(*axes, indexing="ij")[::-1], axis=-1)
    points.flags.writeable = False
    return points


def outline(grid: Any, size: tuple[int, int], align_corners: bool = False) -> np.ndarray:
    """The border of sampling grids in pixels of the image they read, for drawing.

    Args:
        grid: Normalized sampling points `(batch, height, width, 2)`.
        size: `(height, width)` of the image that is read.
        align_corners: Corner convention, see the module.

    Returns:
        A float64 array `(batch, n, 2)` of pixel coordinates `(x, y)`: the border of each grid,
        clockwise in the output, starting at its top left corner.

    Example:
        >>> outline(regular((2, 2))[None], (2, 2)).tolist()
        [[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]
    """
    grid = np.asarray(grid, dtype="float64")
    top, right = grid[:, 0, :-1], grid[:, :-1, -1]
    bottom, left = grid[:, -1, :0:-1], grid[:, :0:-1, 0]
    border = np.concatenate([top, right, bottom, left], axis=1)
    if border.shape[1] == 0:  # a grid of one point is its own border
        border = grid[:, 0]
    height, width = size
    x = to_pixel(border[..., 0], width, align_corners)
    y = to_pixel(border[..., 1], height, align_corners)
    return np.stack([x, y], axis=-1)
