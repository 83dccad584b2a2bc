"""Differentiable reading of images at fractional coordinates.

Three facts decide a sampler: which pixels around a point it reads with which weights
(`SAMPLERS`), what lies outside the image (`PADDINGS`), and the corner convention, which belongs to
`stn.grids`.
"""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
from keras import ops

from stn import grids

SAMPLERS = ("nearest", "bilinear")
PADDINGS = ("zeros", "border", "reflection", "constant")


def sample(
    images: Any,
    points: Any,
    *,
    sampler: str = "bilinear",
    padding: str = "zeros",
    fill_value: float = 0.0,
    align_corners: bool = False,
    data_format: str | None = None,
) -> Any:
    """Read images at normalized points (Jaderberg et al. 2015, section 3.3).

    Gradients reach the points (bilinear) and the images (both samplers). Agrees with
    `torch.nn.functional.grid_sample`.

    Args:
        images: `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
            `data_format="channels_first"`; any float or integer type. Height and width must be
            known; the batch may be dynamic.
        points: `(batch, ..., 2)` normalized `(x, y)`, see `stn.grids`. Float32 or float64;
            other types are converted to float32.
        sampler: `"bilinear"` or `"nearest"` (halves round to even).
        padding: What lies outside the image. `"zeros"`, `"constant"` (`fill_value`),
            `"border"` (the nearest edge pixel) or `"reflection"` (mirrored at the edge: at -1 and
            1, so about the outer edges of the corner pixels or about their centers, as
            `align_corners` says).
        fill_value: With `padding="constant"`: the value outside, in units of the image.
        align_corners: Corner convention, see `stn.grids`.
        data_format: `"channels_last"`, `"channels_first"`, or None for the Keras setting.

    Returns:
        `(batch, ..., channels)`, or `(batch, channels, ...)` channels first, of the type of
        `images`. Values are computed in at least float32; integer types are rounded and clipped
        to their range, and exact up to 2**24. A point that is NaN reads NaN (0 for integer
        types).

    Raises:
        ValueError: On an unknown option or a shape that does not fit.

    Example:
        >>> import numpy as np
        >>> image = np.array([[0.0, 1.0]], "float32").reshape(1, 1, 2, 1)
        >>> middle = np.zeros((1, 1, 2), "float32")
        >>> float(sample(image, middle)[0, 0, 0])
        0.5
    """
    images, points = ops.convert_to_tensor(images), float_tensor(points)
    check_options(sampler, padding, fill_value)
    height, width = image_size(images, data_format)
    check_points(points)
    check_batches(images, "points", points)
    return sample_pixels(
        images,
        grids.to_pixel(points[..., 0], width, align_corners),
        grids.to_pixel(points[..., 1], height, align_corners),
        sampler=sampler,
        padding=padding,
        fill_value=fill_value,
        align_corners=align_corners,
        data_format=data_format,
    )


def sample_pixels(
    images: Any,
    x: Any,
    y: Any,
    *,
    sampler: str,
    padding: str,
    fill_value: float,
    align_corners: bool,
    data_format: str | None,
) -> Any:
    """Read images at pixel coordinates; `sample` after validation and conversion.

    Args:
        images: A tensor as in `sample`.
        x: `(batch, ...)` float32 or float64 pixel coordinates along the width.
        y: The same along the height.
        sampler: See `sample`.
        padding: See `sample`.
        fill_value: See `sample`.
        align_corners: See `sample`.
        data_format: See `sample`.

    Returns:
        As `sample`.
    """
    channels_first = check_data_format(data_format) == "channels_first"
    if channels_first:
        images = ops.moveaxis(images, 1, -1)
    height, width, channels = images.shape[1:]
    values = float_tensor(images)
    if images.shape[0] == 0:  # JAX cannot gather from nothing
        x = ops.zeros((*x.shape, channels), images.dtype)
        return ops.moveaxis(x, -1, 1) if channels_first else x

    fill = fill_value if padding == "constant" else 0.0 if padding == "zeros" else None
    axes = [
        _neighbors(_fold(coordinate, size, padding, align_corners), size, sampler)
        for coordinate, size in ((y, height), (x, width))
    ]
    first = ops.arange(ops.shape(images)[0], dtype="int32") * (height * width)
    first = ops.reshape(first, (-1,) + (1,) * (len(x.shape) - 1))
    pixels = ops.reshape(values, (-1, channels))
    total, inside_weight = 0.0, 0.0
    for (row, row_weight, row_inside), (column, column_weight, column_inside) in itertools.product(
        *axes
    ):
        weight = row_weight * column_weight
        if fill is not None:
            weight = ops.where(ops.logical_and(row_inside, column_inside), weight, 0.0 * weight)
        weight = ops.cast(ops.expand_dims(weight, -1), values.dtype)
        pixel = ops.take(pixels, first + row * width + column, axis=0)
        total = total + weight * pixel
        inside_weight = inside_weight + weight
    if fill:
        total = total + (1.0 - inside_weight) * fill

    result = _to_type_of(images, total)
    return ops.moveaxis(result, -1, 1) if channels_first else result


def _fold(coordinate: Any, size: int, padding: str, align_corners: bool) -> Any:
    """Bring pixel coordinates near the image without changing what they read."""
    if padding == "border":
        return ops.clip(coordinate, 0, size - 1)
    if padding == "reflection":
        # A triangle wave between the mirrors, which stand at the normalized -1 and 1.
        low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
        if span == 0:
            return coordinate * 0.0
        offset = ops.abs(coordinate - low)
        offset = offset - 2 * span * floor(offset / (2 * span))
        return ops.clip(low + span - ops.abs(span - offset), 0, size - 1)
    # Beyond one pixel outside all is fill; the clip keeps infinities out of the weights.
    return ops.clip(coordinate, -2, size + 1)


def _neighbors(coordinate: Any, size: int, sampler: str) -> list[tuple[Any, Any, Any]]:
    """The pixels an axis contributes at each coordinate: (safe index, weight, is inside)."""
    if sampler == "nearest":
        one = ops.ones_like(coordinate)
        near = ops.cast(ops.round(coordinate), coordinate.dtype)
        candidates = [(near, ops.where(ops.isnan(coordinate), np.nan, one))]
    else:
        low = floor(coordinate)
        share = coordinate - low
        candidates = [(low, 1.0 - share), (low + 1.0, share)]
    # A NaN compares false, so it becomes index 0 and never reads out of range.
    return [
        (
            ops.cast(ops.where(at >= 0, ops.minimum(at, size - 1.0), ops.zeros_like(at)), "int32"),
            weight,
            ops.logical_and(at >= 0, at <= size - 1),
        )
        for at, weight in candidates
    ]


def _to_type_of(images: Any, values: Any) -> Any:
    dtype = keras.backend.standardize_dtype(images.dtype)
    if "float" not in dtype:
        limits = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        # The largest float32 inside the range: the limit of a wide type would round out of it.
        low, high = limits[0], float(np.nextafter(np.float32(limits[1] + 1), np.float32(0)))
        values = ops.clip(ops.round(values), low, min(high, limits[1]))
        values = ops.where(ops.isnan(values), ops.zeros_like(values), values)
    return ops.cast(values, dtype)


def float_tensor(values: Any) -> Any:
    """Convert to a tensor for computing: float64 stays, everything else becomes float32."""
    values = ops.convert_to_tensor(values)
    return values if is_float64(values) else ops.cast(values, "float32")


def is_float64(tensor: Any) -> bool:
    """Whether a tensor is float64."""
    return keras.backend.standardize_dtype(tensor.dtype) == "float64"


def floor(values: Any) -> Any:
    """`keras.ops.floor`, but float64 stays: Keras rounds it to float32 on JAX and PyTorch."""
    low = ops.cast(ops.floor(values), values.dtype)
    return low - ops.cast(low > values, values.dtype) if is_float64(values) else low


def image_size(images: Any, data_format: str | None) -> tuple[int, int]:
    """The `(height, width)` of a batch of images; see `shape_size`."""
    return shape_size(images.shape, data_format)


def shape_size(shape: Any, data_format: str | None) -> tuple[int, int]:
    """The `(height, width)` in the shape of a batch of images.

    Args:
        shape: Four numbers; the batch and the channels may be None.
        data_format: `"channels_last"`, `"channels_first"`, or None for the Keras setting.

    Raises:
        ValueError: If the shape is not one of images, or height or width is unknown or 0.
    """
    shape = tuple(shape)
    if len(shape) != 4:
        raise ValueError(
            "Expected images of shape (batch, height, width, channels), or "
            "(batch, channels, height, width) with data_format='channels_first'. "
            f"Received: shape={shape}"
        )
    size = shape[2:] if check_data_format(data_format) == "channels_first" else shape[1:3]
    if not all(size):
        raise ValueError(
            "Expected images of known height and width, at least 1 pixel each. "
            f"Received: shape={shape}"
        )
    return size


def check_options(sampler: str, padding: str, fill_value: float) -> None:
    """Raise a ValueError unless sampler, padding and fill value are valid together."""
    if sampler not in SAMPLERS:
        raise ValueError(f"Expected sampler to be one of {SAMPLERS}. Received: sampler={sampler!r}")
    if padding not in PADDINGS:
        raise ValueError(f"Expected padding to be one of {PADDINGS}. Received: padding={padding!r}")
    if fill_value and padding != "constant":
        raise ValueError(
            "Expected fill_value only together with padding='constant'. "
            f"Received: fill_value={fill_value!r}, padding={padding!r}"
        )


def check_points(points: Any) -> None:
    """Raise a ValueError unless a tensor has the shape of a batch of points."""
    if len(points.shape) < 2 or points.shape[-1] != 2:
        raise ValueError(
            f"Expected points of shape (batch, ..., 2). Received: points.shape={points.shape}"
        )


def check_batches(tensor: Any, name: str, other: Any, *, first: str = "images") -> None:
    """Raise a ValueError if both batch sizes are known and differ."""
    if None not in (tensor.shape[0], other.shape[0]) and tensor.shape[0] != other.shape[0]:
        raise ValueError(
            f"Expected {first} and {name} of the same batch size. Received: "
            f"{first}.shape={tuple(tensor.shape)}, {name}.shape={tuple(other.shape)}"
        )


def check_data_format(data_format: str | None) -> str:
    """Return the data format, the Keras setting for None; raise a ValueError on another value."""
    if data_format is None:
        return keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            "Expected data_format to be 'channels_last', 'channels_first' or None. "
            f"Received: data_format={data_format!r}"
        )
    return data_format
