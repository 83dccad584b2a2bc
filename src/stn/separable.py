"""Reading along one axis after the other, where the rows of a grid are all alike, and its columns.

So it is for transformations that only shift and stretch along the axes. A sampler that reads `k`
pixels along every axis weighs `k` times `k` of them at a point of an image; here that is a product
with a matrix for each axis, whatever the sampler. Its gradients are products too, with no scatter
among them. A pixel that is NaN or infinite spoils its image, though.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from stn import filters


def pays(size: tuple[int, ...], reach: int) -> bool:
    """Whether this is faster than reading point by point (measured: docs/experiments.md).

    Args:
        size: The size of the images. The longer an axis, the more products are with zeros.
        reach: How many pixels the sampler reads along an axis.

    Example:
        >>> pays((28, 28), reach=1), pays((28, 4000), reach=6)
        (False, False)
    """
    return reach > 1 and max(size) <= 48 * reach**2 and not _rounds()


def read(values: Any, taps: list[Any], fill: tuple[float, ...] | None) -> Any:
    """Read a grid whose points share their coordinate along each axis.

    Args:
        values: Images `(batch, *size, channels)`.
        taps: For each axis what a sampler reads at the coordinates `(batch, output)` along it: a
            list of `(index, is inside, weight)`.
        fill: The values outside, one per channel; None where all indices are inside.

    Returns:
        `(batch, *output_size, channels)`.

    Example:
        >>> from keras import ops
        >>> both = [(ops.array([[n]]), ops.array([[True]]), ops.array([[0.5]])) for n in (0, 1)]
        >>> float(read(ops.array([[[2.0], [4.0], [9.0]]]), [both], None)[0, 0, 0])
        3.0
    """
    matrices = [
        _matrix(axis_taps, n, fill is not None, values.dtype)
        for axis_taps, n in zip(taps, values.shape[1:-1], strict=True)
    ]
    with filters.exactly(values):
        for axis, matrix in enumerate(matrices, 1):
            values = _multiply(matrix, values, axis)
    if any(fill or ()):
        inside = ops.ones((1,), values.dtype)
        for axis, matrix in enumerate(matrices):
            share = ops.reshape(ops.sum(matrix, axis=-1), (-1, *(1,) * axis, matrix.shape[1]))
            inside = ops.expand_dims(inside, -1) * share
        outside = ops.expand_dims(1.0 - inside, -1)
        values = values + outside * ops.convert_to_tensor(fill, values.dtype)
    return values


def _matrix(taps: list[Any], size: int, masked: bool, dtype: Any) -> Any:
    """The weight of every pixel of an axis at every point of it, `(batch, output, size)`."""
    pixels, total = ops.arange(size, dtype="int32"), 0.0
    for index, is_inside, weight in taps:
        if masked:
            weight = ops.where(is_inside, weight, 0.0 * weight)
        here = ops.expand_dims(index, -1) == pixels
        weight = ops.expand_dims(ops.cast(weight, dtype), -1)
        total = total + ops.where(here, weight, ops.zeros_like(weight))
    return total


def _multiply(matrix: Any, values: Any, axis: int) -> Any:
    shape = tuple(values.shape)
    before, after = math.prod(shape[1:axis]), math.prod(shape[axis + 1 :])
    output = matrix.shape[1]
    # einsum and not matmul: Keras rounds float64 to float32 in the latter on PyTorch.
    if after == 1:
        flat = ops.reshape(values, (-1, before, shape[axis]))
        flat = ops.einsum("bki,boi->bko", flat, matrix)
    elif before == 1:
        flat = ops.reshape(values, (-1, shape[axis], after))
        flat = ops.einsum("boi,biq->boq", matrix, flat)
    else:
        flat = ops.reshape(values, (-1, before, shape[axis], after))
        flat = ops.einsum("boi,bkiq->bkoq", matrix, flat)
    return ops.reshape(flat, (-1, *shape[1:axis], output, *shape[axis + 1 :]))


def _rounds() -> bool:
    """Whether products of matrices have fewer digits than float32 here, whatever we say."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
