"""Images filtered with fixed kernels: shrunk without aliasing, and their slopes at a distance.

All filters are products with constant matrices, one axis at a time, so they cost little, have
exact gradients and run alike on every backend. `exactly` keeps products from being rounded, those
of other modules too.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from typing import Any

import keras
import numpy as np
from keras import ops


def exactly(tensor: Any) -> Any:
    """Products in all digits of float32, where an accelerator or PyTorch's autocast would round.

    Args:
        tensor: One that is multiplied.

    Returns:
        What to do it within: `with exactly(tensor): ...`.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_matmul_precision("highest")
    if keras.backend.backend() == "torch":
        import torch

        kind = tensor.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def along(values: Any, matrix: np.ndarray, axis: int) -> Any:
    """Multiply a tensor by a constant matrix along one axis.

    Args:
        values: `(batch, ..., channels)` float tensor; all but the batch must be known.
        matrix: `(output, input)`.
        axis: The axis of `values`, of length `input`.

    Returns:
        The tensor with `output` instead of `input` along the axis.
    """
    shape = tuple(values.shape)
    flat = ops.reshape(values, (-1, shape[axis], math.prod(shape[axis + 1 :])))
    matrix = ops.convert_to_tensor(matrix, keras.backend.standardize_dtype(values.dtype))
    # einsum and not matmul: Keras rounds float64 to float32 in the latter on PyTorch.
    with exactly(flat):
        flat = ops.einsum("oi,biq->boq", matrix, flat)
    return ops.reshape(flat, (-1, *shape[1:axis], matrix.shape[0], *shape[axis + 1 :]))


@functools.lru_cache(maxsize=256)
def tent(size: int, output_size: int) -> np.ndarray:
    """The matrix that resizes an axis, with a tent as wide as two pixels of the result.

    This is bilinear interpolation where the axis grows, and the same kernel stretched where it
    shrinks, as Pillow and `keras.ops.image.resize(antialias=True)` do.

    Returns:
        `(output_size, size)` float64; rows sum to 1.

    Example:
        >>> tent(4, 2).tolist()[0]
        [0.42857142857142855, 0.42857142857142855, 0.14285714285714285, 0.0]
    """
    factor = size / output_size
    centers = (np.arange(output_size) + 0.5) * factor - 0.5
    distance = np.abs(np.arange(size) - np.clip(centers, 0, size - 1)[:, None])
    weights = np.clip(1 - distance / max(factor, 1), 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def resize(images: Any, size: tuple[int, ...]) -> Any:
    """Resize a batch of channels-last images or volumes without aliasing.

    Args:
        images: `(batch, ..., channels)` float tensor of known size.
        size: The new size of the axes between batch and channels.

    Returns:
        `(batch, *size, channels)`.
    """
    for axis, length in enumerate(size, start=1):
        if images.shape[axis] != length:
            images = along(images, tent(images.shape[axis], length), axis)
    return images


def level_sizes(size: int) -> list[int]:
    """The lengths of an axis that is halved again and again, from `size` down to 1.

    Example:
        >>> level_sizes(28)
        [28, 14, 7, 4, 2, 1]
    """
    return [-(-size // 2**level) for level in range(math.ceil(math.log2(size)) + 1)]


def pyramid(images: Any) -> tuple[Any, np.ndarray]:
    """Shrink images by powers of two, along each axis on its own.

    The axes shrink independently (a "ripmap", Heckbert 1986), so that a view that is squeezed in
    one direction stays sharp in the other.

    Args:
        images: `(batch, ..., channels)` float tensor.

    Returns:
        All the pixels of all levels, `(batch, pixels, channels)`, and where each level starts
        among them: an int array with one axis per axis of the image, indexed by level.
    """
    size, channels = images.shape[1:-1], images.shape[-1]
    levels = [level_sizes(n) for n in size]
    starts = np.zeros([len(lengths) for lengths in levels], "int32")
    parts, start = [], 0
    for index in itertools.product(*(range(len(lengths)) for lengths in levels)):
        shape = tuple(lengths[level] for lengths, level in zip(levels, index, strict=True))
        parts.append(ops.reshape(resize(images, shape), (-1, math.prod(shape), channels)))
        starts[index] = start
        start += math.prod(shape)
    return ops.concatenate(parts, axis=1), starts


def slopes(images: Any, padding: str, align_corners: bool) -> tuple[list[Any], int]:
    """How an image rises along each axis, seen from nearby and from afar.

    At every pixel planes are fitted to the image around it by least squares, under Gaussian
    weights of an eighth and a quarter of the image; the result is their mean slope. A narrower one
    beside them sees more, but holds points fast at small hills.

    Args:
        images: `(batch, ..., channels)` float tensor.
        padding: What lies outside, see `stn.sample`; where it is a constant, that must be 0.
        align_corners: Corner convention, see `stn.grids`.

    Returns:
        One tensor per axis, per pixel, and the number of pixels by which they extend beyond the
        image on each side.
    """
    size = tuple(images.shape[1:-1])
    widths = sorted({max(max(size) * share, 1.0) for share in (1 / 8, 1 / 4)})
    margin = math.ceil(3 * widths[-1])
    total: list[Any] = [0.0] * len(size)
    for width in widths:
        offsets = np.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
        weights = np.exp(-0.5 * (offsets / width) ** 2)
        smooth = tuple(weights / weights.sum())
        slope = tuple(weights * offsets / (weights @ offsets**2))
        for steep in range(len(size)):
            filtered = images
            for axis, n in enumerate(size):
                kernel = slope if axis == steep else smooth
                matrix = _correlation(n, margin, kernel, padding, align_corners)
                filtered = along(filtered, matrix, axis + 1)
            total[steep] = total[steep] + filtered / len(widths)
    return total, margin


@functools.lru_cache(maxsize=64)
def _correlation(
    size: int, margin: int, kernel: tuple[float, ...], padding: str, align_corners: bool
) -> np.ndarray:
    """The matrix that correlates an axis, `margin` pixels longer at both ends, with a kernel."""
    mirror = "reflect" if align_corners else "symmetric"
    mode: Any = {"border": "edge", "circular": "wrap", "reflection": mirror}.get(padding)
    # Which pixel lies where, counted from 1: padding with zeros leaves 0 where there is none.
    padded = np.pad(np.arange(1, size + 1), margin + len(kernel) // 2, mode=mode or "constant")
    at = np.lib.stride_tricks.sliding_window_view(padded, len(kernel))
    matrix = np.zeros((size + 2 * margin, size + 1))
    np.add.at(matrix, (np.arange(len(matrix))[:, None], at), kernel)
    return matrix[:, 1:]
