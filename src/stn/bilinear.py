"""Bilinear reading, as fast as the backend can: the gradients are written by hand.

`samplers` holds the reference implementation, which knows every sampler; this is what it hands the
common case to. A point reads the pair of pixels before and after it along every axis, weighed by
the hat `max(0, 1 - |distance|)` around each pixel (Jaderberg et al. 2015, equation 5). At the edge
the last pair inside is read, whose hats fade to zero with the distance: no test for inside, no
frame around the image. The gradient to a point reads again, with the slopes of the hats, and
nothing but the points is kept for it; the gradient to the image is scattered pair by pair, and in a
compiled step only where someone asks for it.

Two rules made it fast, both measured (docs/experiments.md). What a step needs beside its results
must stay small, or most of its time goes into fetching fresh memory: so the gradient works through
the batch in parts, one after the other. And XLA must neither share the pixels read between two
results nor sum over channels inside the loop that reads them, unless there are few: those are read
as single numbers, one channel after the other.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from stn import filters

PART = 2**18
"""The most values of a gradient that are on their way at a time."""

SIDE_BY_SIDE = 128
"""Up to so many images, PyTorch is faster at making the coordinates of a point side by side."""

FEW = 12
"""Up to so many channels are read one by one for the gradient to the points."""


def read(values: Any, at: list[Any]) -> Any:
    """Read images at pixel coordinates; what lies outside is zero.

    Args:
        values: A float32 tensor `(batch, *size, channels)`, at least two pixels along every axis.
        at: One float32 tensor `(batch, ...)` of pixel coordinates per axis of the image, in the
            order of its axes. Beyond the outermost pixels values fall linearly to zero, one pixel
            away; a NaN reads NaN.

    Returns:
        `(batch, ..., channels)`.
    """
    if values.shape[-1] == 1:
        # The points take the place of the channel: an axis of its own would keep XLA from fusing.
        values = ops.reshape(values, (-1, *values.shape[1:-1]))
        at = [ops.expand_dims(coordinate, -1) for coordinate in at]
    return differentiable(_call, _gradients)(values, *at)


def cover(at: list[Any], size: tuple[int, ...]) -> Any:
    """How much of what `read` weighs lies inside: exactly 1 in the image, 0 a pixel beyond it.

    Args:
        at: See `read`.
        size: The size of the image.

    Returns:
        `(batch, ..., 1)`.

    Example:
        >>> from keras import ops
        >>> ops.convert_to_numpy(cover([ops.array([[-0.25, 0.5, 2.0]])], (2,))).ravel().tolist()
        [0.75, 1.0, 0.0]
    """
    share = 1.0
    for c, n in zip(at, size, strict=True):
        share = share * ops.relu(ops.where(c < 0, c + 1.0, ops.where(c >= n - 1, n - c, 1.0)))
    return ops.expand_dims(share, -1)


def suits(values: Any, at: list[Any]) -> bool:
    """Whether `read` can read this."""
    kinds = {keras.backend.standardize_dtype(tensor.dtype) for tensor in (values, *at)}
    return (
        keras.backend.backend() in ("jax", "tensorflow")
        and kinds == {"float32"}
        and all(n >= 2 for n in values.shape[1:-1])
        and all(at[0].shape[1:])
        # Rows are counted in int32.
        and math.prod(n for n in values.shape if isinstance(n, int)) < 2**31
    )


def read_natively(
    values: Any, points: list[Any], pixels: Any, padding: str, align_corners: bool
) -> Any:
    """Read a grid by PyTorch's own kernel, where that is the fastest way and exact enough.

    That kernel converts to pixels in float32, so a whole pixel is missed by some 1e-6. It is left
    alone where that would be seen: at the identity, and everywhere else where both ends of the
    grid stand on whole pixels.

    Args:
        values: `(batch, *size, channels)`.
        points: Normalized coordinates `(batch, *output_size)` each: x, y[, z].
        pixels: A function from such coordinates at the `(first, last)` point of the grid to exact
            pixel coordinates.
        padding: One that `torch.nn.functional.grid_sample` knows.
        align_corners: See `stn.grids`.

    Returns:
        `(batch, *output_size, channels)`, or None if it has to be read in another way.
    """
    if keras.backend.backend() != "torch":
        return None
    import torch

    tensors = [values, *points]
    if (
        any(tensor.dtype != torch.float32 or tensor.device.type == "meta" for tensor in tensors)
        or torch.compiler.is_compiling()  # makes one loop of the reference
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or (torch.are_deterministic_algorithms_enabled() and values.is_cuda)
    ):
        return None
    ends = torch.stack(
        pixels([coordinate.detach().flatten(1)[:, [0, -1]] for coordinate in points])
    )
    between = (ends != ends.round()).any(dim=-1).any(dim=0)  # of each image
    # What is not a number or infinite is not read as promised either; it spoils a sum.
    total = torch.stack([coordinate.detach().sum() for coordinate in points]).sum()
    try:
        if not bool(between.all() & total.isfinite()):
            return None
    except RuntimeError:  # under torch.func.vmap nothing can be decided
        return None
    last = len(values.shape) - 1
    result = torch.nn.functional.grid_sample(
        values.movedim(last, 1),
        _side_by_side(points),
        mode="bilinear",
        padding_mode=padding,
        align_corners=align_corners,
    )
    return result.movedim(1, last)


def combine_natively(rows: list[list[Any]], columns: list[Any]) -> list[Any]:
    """`matrices.combine` by products of PyTorch, for columns that are the same for all images.

    Args:
        rows: Lists of `(batch,)` tensors, as many in each as there are columns.
        columns: Tensors `(1, ...)`.

    Returns:
        For each row a tensor `(batch, points)`.
    """
    import torch

    points = torch.stack([column.flatten() for column in columns])
    factors = torch.stack([torch.stack(row, dim=-1) for row in rows])
    with filters.exactly(points):
        if factors.shape[1] > SIDE_BY_SIDE:
            return list(torch.matmul(factors, points))
        # As `read_natively` wants to have them.
        moved = torch.matmul(points.T, factors.permute(1, 2, 0))
    return list(moved.unbind(-1))


def _side_by_side(columns: list[Any]) -> Any:
    """One tensor of points out of their coordinates: where they come from if they are there."""
    import torch

    first, n = columns[0], len(columns)
    whole = first._base
    if (
        whole is not None
        and whole.is_contiguous()
        and whole.numel() == n * first.numel()
        and all(
            column._base is whole
            and column.storage_offset() == whole.storage_offset() + axis
            and column.stride(-1) == n
            for axis, column in enumerate(columns)
        )
    ):
        return whole.reshape(*first.shape, n)
    return torch.stack(columns, dim=-1)


@functools.cache
def differentiable(function: Any, gradients: Any) -> Any:
    """A function of tensors whose gradients are written by hand; not on PyTorch.

    `keras.ops.custom_gradient` is not enough: on JAX it computes what it can of the gradients
    along with the result, and keeps it.

    Args:
        function: From tensors to one tensor.
        gradients: From the same, the gradient to the result and `wanted` to the gradients to each
            of the tensors: `wanted` says of each whether anyone asks for it; it is None where
            nobody knows. What is not wanted may be None.

    Returns:
        The function.
    """
    if keras.backend.backend() == "jax":
        import jax

        def forward(*tensors: Any) -> Any:
            values = tuple(tensor.value for tensor in tensors)
            # What is kept may only hold arrays; so an empty tuple says yes and None says no.
            return function(*values), (values, [() if t.perturbed else None for t in tensors])

        def backward(kept: Any, change: Any) -> Any:
            values, marks = kept
            if isinstance(change, jax.custom_derivatives.SymbolicZero):
                return (None,) * len(values)
            wanted = [mark is not None for mark in marks]
            found = gradients(*values, change, wanted=wanted)
            return tuple(g if asked else None for g, asked in zip(found, wanted, strict=True))

        result = jax.custom_vjp(function)
        result.defvjp(forward, backward, symbolic_zeros=True)
        return result
    import tensorflow as tf

    return tf.custom_gradient(
        lambda *tensors: (
            function(*tensors),
            lambda change: tuple(gradients(*tensors, change, wanted=None)),
        )
    )


def _call(*tensors: Any) -> Any:
    return _run(_read, *tensors)


def _gradients(values: Any, *arguments: Any, wanted: list[bool] | None) -> list[Any]:
    *at, change = arguments
    if wanted is None:
        tensors = values, *arguments
        return [_run(_image_gradient, *tensors), *_run(_point_gradients, *tensors)]
    to_image = None
    if wanted[0]:
        to_image = _image_gradient(values, *at, change)
        # One after the other, they take turns in the same memory.
        at = [_after(coordinate, to_image) for coordinate in at]
    to_points = _point_gradients(values, *at, change) if any(wanted[1:]) else [None] * len(at)
    return [to_image, *to_points]


def _run(function: Any, *tensors: Any) -> Any:
    """Call a function; inside a graph of TensorFlow, compile it by XLA whatever the rest is."""
    if keras.backend.backend() != "tensorflow":
        return function(*tensors)
    import tensorflow as tf

    if tf.executing_eagerly():
        return function(*tensors)
    # The concrete function: a call of the other warns of every new shape.
    return _compiled(function).get_concrete_function(*tensors)(*tensors)


@functools.cache
def _compiled(function: Any) -> Any:
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


def _read(values: Any, *at: Any) -> Any:
    size, channels = _split(values, at)
    # As many images as there are: points of another number do not go with them.
    first, offsets = _place(size, at, ops.shape(values)[0])
    weights = [_hats(_spread(offset, channels)) for offset in offsets]
    return _weighed(_table(values, channels), first, _steps(size), weights)


def _point_gradients(values: Any, *arguments: Any) -> list[Any]:
    """How the result changes with each coordinate, summed over the channels."""
    *at, change = arguments
    size, channels = _split(values, at)
    few = (channels or 1) <= FEW
    gradient = _few_channels_gradient if few else _many_channels_gradient
    results: list[Any] = []
    for axis in range(len(at)):
        at, parts = _apart(at), []
        for part in _parts(change):
            at_ = [coordinate[part] for coordinate in at]
            if not few:
                at_ = [_after(coordinate, (parts or results or [change])[-1]) for coordinate in at_]
            first, offsets = _place(size, at_)
            weights = [
                (_slopes if k == axis else _hats)(offset) for k, offset in enumerate(offsets)
            ]
            parts.append(gradient(values[part], first, weights, change[part]))
        results.append(ops.concatenate(parts, axis=0) if len(parts) > 1 else parts[0])
    return results


def _few_channels_gradient(values: Any, first: Any, weights: list[Any], change: Any) -> Any:
    # Number by number: all of it is one loop, which stores nothing on its way.
    size, channels = _split(values, weights)
    n = channels or 1
    numbers, steps = ops.reshape(values, (-1,)), [n * step for step in _steps(size)]
    return sum(
        (change[..., k] if channels else change) * _weighed(numbers, first * n + k, steps, weights)
        for k in range(n)
    )


def _many_channels_gradient(values: Any, first: Any, weights: list[Any], change: Any) -> Any:
    size, channels = values.shape[1:-1], values.shape[-1]
    weights = [[_spread(share, channels) for share in pair] for pair in weights]
    slope = _weighed(_table(values, channels), first, _steps(size), weights)
    # Not `sum`: XLA would read and sum in one loop, which it cannot vectorize.
    with filters.exactly(slope):
        return ops.matmul(change * slope, np.ones((channels, 1), "float32"))[..., 0]


def _image_gradient(values: Any, *arguments: Any) -> Any:
    """What each pixel of the image contributed, times what became of it."""
    *at, change = arguments
    size, channels = _split(values, at)
    steps = _steps(size)
    total = ops.zeros_like(_table(values, channels))
    for part in _parts(change):
        for corner in itertools.product((0, 1), repeat=len(size) - 1):
            at_ = [coordinate[part] for coordinate in at]
            if channels:
                at_ = [_after(coordinate, total) for coordinate in at_]
            first, offsets = _place(size, at_)
            weight = change[part]
            for offset, end in zip(offsets, corner, strict=False):
                weight = weight * _spread(_hats(offset)[end], channels)
            row = first + part.start * math.prod(size)
            row = row + sum(end * step for end, step in zip(corner, steps, strict=False))
            # Both ends of the last axis in one loop, not two of them joined.
            pair = ops.expand_dims(offsets[-1], -1) - np.array([0.0, 1.0], "float32")
            updates = _spread(_hat(pair), channels) * ops.expand_dims(weight, len(row.shape))
            total = _add_pairs(total, row, updates)
    return ops.reshape(total, ops.shape(values))


def _split(values: Any, at: Any) -> tuple[tuple[int, ...], int | None]:
    """The size of the images, and their channels if they have that axis."""
    n = len(at)
    return values.shape[1 : 1 + n], values.shape[-1] if len(values.shape) > n + 1 else None


def _table(values: Any, channels: int | None) -> Any:
    """All pixels of all images, one a row."""
    return ops.reshape(values, (-1, channels) if channels else (-1,))


def _spread(tensor: Any, channels: int | None) -> Any:
    """Ready to be multiplied with channels."""
    return ops.expand_dims(tensor, -1) if channels else tensor


def _place(size: tuple[int, ...], at: Any, count: Any = None) -> tuple[Any, list[Any]]:
    """The first pixel that each point reads, as row of a table of all, and how far it is beyond."""
    count = ops.shape(at[0])[0] if count is None else count
    rows, offsets = 0, []
    for coordinate, n in zip(at, size, strict=True):
        # NaN and whatever lies before the image compare false: the first pair.
        first = ops.where(coordinate >= 0, ops.minimum(ops.floor(coordinate), n - 2.0), 0.0)
        rows = rows * n + ops.cast(first, "int32")
        offsets.append(coordinate - first)
    images = ops.arange(count, dtype="int32") * math.prod(size)
    return rows + ops.reshape(images, (-1,) + (1,) * (len(at[0].shape) - 1)), offsets


def _steps(size: tuple[int, ...]) -> list[int]:
    """How many rows of the table one pixel along each axis is."""
    return [math.prod(size[axis + 1 :]) for axis in range(len(size))]


def _hats(offset: Any) -> list[Any]:
    """The weights of the two pixels around a point that lies `offset` beyond the first."""
    return [_hat(offset - k) for k in (0.0, 1.0)]


def _hat(distance: Any) -> Any:
    return ops.maximum(1.0 - ops.abs(distance), 0.0)


def _slopes(offset: Any) -> list[Any]:
    """The derivatives of `_hats`, at a kink the one to its right."""
    slopes = []
    for k in (0, 1):
        steep = ops.logical_and(offset >= k - 1, offset < k + 1)
        slope = ops.where(offset < k, 1.0, -1.0)
        slopes.append(ops.where(steep, slope, ops.where(ops.isnan(offset), offset, 0.0)))
    return slopes


def _weighed(table: Any, row: Any, steps: list[int], weights: list[Any]) -> Any:
    """The sum of all pixels around each point, each times the product of its weights."""
    if not steps:
        return _gather(table, row)
    near, far = (_weighed(table, row + k * steps[0], steps[1:], weights[1:]) for k in (0, 1))
    return weights[0][0] * near + weights[0][1] * far


def _parts(change: Any) -> list[slice]:
    """The batch in parts of about `PART` values."""
    batch, rest = change.shape[0], math.prod(change.shape[1:])
    if not isinstance(batch, int):  # not known yet
        return [slice(0, None)]
    count = min(-(-batch * rest // PART), 16, batch)
    ends = [round(k * batch / count) for k in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def _apart(tensors: list[Any]) -> list[Any]:
    """The same tensors, but XLA shares nothing that is made of them with the originals."""
    if keras.backend.backend() == "jax":
        from jax import lax

        return lax.optimization_barrier(tensors)
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python import xla

    @tf.custom_gradient
    def barrier(*tensors: Any) -> Any:  # TensorFlow has no gradient of its own for it
        return xla.optimization_barrier(*tensors), lambda *changes: changes

    return tensors if tf.executing_eagerly() else barrier(*tensors)


def _after(tensor: Any, other: Any) -> Any:
    """The same tensor, but XLA cannot know that, and has to have the other one first."""
    late = ops.reshape(other, (-1,))[0] > np.inf
    return tensor + ops.cast(late, tensor.dtype)


def _gather(table: Any, row: Any) -> Any:
    """Rows of a table, all of them in range."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.gather(table, row)
    from jax import lax

    channels = table.shape[1:]
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(row.ndim,) * len(channels), collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(table, row[..., None], numbers, (1, *channels), mode=mode)


def _add_pairs(table: Any, row: Any, updates: Any) -> Any:
    """Add `(points, 2, channels)` to the rows of a table, and to those that follow them."""
    width = math.prod(table.shape[1:])
    # The two rows lie side by side, so one update of twice the length does for both.
    start = ops.reshape(row, (-1, 1)) * width
    flat = ops.reshape(table, (-1,))
    updates = ops.reshape(updates, (-1, 2 * width))
    add = _scatter_jax if keras.backend.backend() == "jax" else _scatter_tensorflow
    return ops.reshape(add(flat, start, updates), ops.shape(table))


def _scatter_jax(flat: Any, start: Any, updates: Any) -> Any:
    from jax import lax

    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.scatter_add(flat, start, updates, numbers, mode=mode)


def _scatter_tensorflow(flat: Any, start: Any, updates: Any) -> Any:
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python import xla
    from tensorflow.compiler.xla import xla_data_pb2

    where = start + tf.range(updates.shape[1])
    if tf.executing_eagerly():
        return tf.tensor_scatter_nd_add(flat, where[..., None], updates)
    numbers = xla_data_pb2.ScatterDimensionNumbers(
        update_window_dims=[1], scatter_dims_to_operand_dims=[0], index_vector_dim=1
    )
    scalar = tf.TensorSpec([], flat.dtype)
    add = tf.function(tf.add, autograph=False).get_concrete_function(scalar, scalar)

    @tf.custom_gradient
    def scatter(flat: Any, updates: Any) -> Any:  # likewise
        result = xla.scatter(flat, start, updates, add, numbers)
        return result, lambda change: (change, tf.gather(change, where))

    return scatter(flat, updates)
