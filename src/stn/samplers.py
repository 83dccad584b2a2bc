"""Differentiable reading of images and volumes at fractional coordinates.

Three facts decide a sampler: which pixels around a point it reads with which weights
(`SAMPLERS`), what lies outside the image (`PADDINGS`), and the corner convention, which belongs to
`stn.grids`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from stn import bilinear, filters, grids, separable
from stn.symbolic import functional

SAMPLERS = ("nearest", "bilinear", "bicubic", "lanczos3", "antialiased", "linearized")
PADDINGS = ("zeros", "border", "reflection", "circular", "constant", "inward")


@functional(lambda images, options: image_size(images, options["data_format"]))
def sample(
    images: Any,
    points: Any,
    *,
    sampler: str = "bilinear",
    padding: str = "zeros",
    fill_value: float | Iterable[float] = 0.0,
    align_corners: bool = False,
    data_format: str | None = None,
) -> Any:
    """Read images or volumes at normalized points (Jaderberg et al. 2015, section 3.3).

    Gradients reach the points and the images. Agrees with `torch.nn.functional.grid_sample`
    where that has the sampler and the padding.

    Args:
        images: `(batch, height, width, channels)`, or a volume `(batch, depth, height, width,
            channels)`; with `data_format="channels_first"` the channels follow the batch. Any
            float or integer type. All sizes but the batch must be known.
        points: `(batch, ..., 2)` normalized `(x, y)`, or `(batch, ..., 3)` `(x, y, z)` for
            volumes, see `stn.grids`. Float32 or float64; other types are converted to float32.
        sampler: How values are made of pixels.
            `"nearest"`: the nearest pixel (halves round to even); no gradient to the points.
            `"bilinear"`: linear along every axis, two pixels each.
            `"bicubic"`: cubic convolution of four pixels along every axis, a = -0.75 as in
            PyTorch and OpenCV (Keys 1981); may overshoot.
            `"lanczos3"`: a windowed sinc of six pixels, normalized; the sharpest, may overshoot.
            `"antialiased"`: bilinear where the points lie a pixel apart or closer. Where they lie
            further apart, a tent as wide as their distance, axis by axis, out of a pyramid
            (Heckbert 1986): shrinking does not alias. The points must form a grid, `(batch,
            height, width, 2)`; along an axis with one point nothing is known of distances.
            `"linearized"`: the values of bilinear, but a gradient to the points that sees beyond
            the four neighbors: the slope of planes fitted to the image around the point, up to
            three quarters of its size away (after Jiang et al. 2019, linearized multi-sampling,
            with the expectation over their random samples in closed form).
        padding: What lies outside the image. `"zeros"`; `"constant"` (`fill_value`); `"border"`
            (the nearest edge pixel); `"reflection"` (mirrored at the edge: at -1 and 1, so about
            the outer edges of the corner pixels or about their centers, as `align_corners`
            says); `"circular"` (the image repeats, each copy next to the other); `"inward"` (the
            values of `"constant"`, but a point outside has the gradient of a picture whose mean
            fades with distance, so that it finds its way back).
        fill_value: With `padding="constant"` or `"inward"`: the value outside, in units of the
            image; one number, or one per channel.
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
    size = image_size(images, data_format)
    check_points(points, len(size))
    check_batches(images, "points", points)
    return sample_pixels(
        images,
        [
            grids.to_pixel(points[..., axis], length, align_corners)
            for axis, length in enumerate(reversed(size))
        ],
        sampler=sampler,
        padding=padding,
        fill_value=fill_value,
        align_corners=align_corners,
        data_format=data_format,
    )


def sample_pixels(
    images: Any,
    coordinates: list[Any],
    *,
    sampler: str,
    padding: str,
    fill_value: float | Iterable[float],
    align_corners: bool,
    data_format: str | None,
    aligned: bool = False,
) -> Any:
    """Read images at pixel coordinates; `sample` after validation and conversion.

    Args:
        images: A tensor as in `sample`.
        coordinates: One `(batch, ...)` float32 or float64 tensor of pixel coordinates per axis:
            x, y[, z].
        sampler: See `sample`.
        padding: See `sample`.
        fill_value: See `sample`.
        align_corners: See `sample`.
        data_format: See `sample`.
        aligned: Whether the points form a grid in which each coordinate is the same all along the
            other axes.

    Returns:
        As `sample`.
    """
    images = to_channels_last(images, data_format)
    channels, values = images.shape[-1], float_tensor(images)
    if images.shape[0] == 0:  # JAX cannot gather from nothing
        result = ops.zeros((*coordinates[0].shape, channels), images.dtype)
        return from_channels_last(result, data_format)

    fill = _fill(padding, fill_value, channels)
    at = coordinates[::-1]  # in the order of the axes of the image

    def read(values: Any, fill: tuple[float, ...] | None) -> Any:
        if sampler == "antialiased":
            return _read_antialiased(values, at, padding, fill, align_corners)
        if sampler == "linearized":
            return _read_linearized(values, at, padding, fill, align_corners)
        return _read(values, at, sampler, padding, fill, align_corners, aligned)

    if fill is None or all(map(math.isfinite, fill)):
        result = read(values, fill)
    else:  # not weighed, for 0 times NaN is NaN: it stands wherever anything outside is read
        others = ops.convert_to_tensor([0.0 if math.isfinite(n) else n for n in fill], values.dtype)
        inside = ops.stop_gradient(read(ops.ones_like(values), (0.0,) * channels))
        fill = tuple(n if math.isfinite(n) else 0.0 for n in fill)
        result = read(values, fill)
        result = result + ops.where(ops.abs(1 - inside) > 1e-5, others, ops.zeros_like(others))
    if padding == "inward":
        result = result + _inward(values, at, fill)
    return from_channels_last(_to_type_of(images, result), data_format)


def _fill(padding: str, fill_value: Any, channels: int) -> tuple[float, ...] | None:
    """The values outside, one per channel, or None where the padding looks into the image."""
    if padding not in ("zeros", "constant", "inward"):
        return None
    fill = fill_values(0.0 if padding == "zeros" else fill_value)
    if len(fill) not in (1, channels):
        raise ValueError(
            f"Expected fill_value to be a number, or one for each of the {channels} channels. "
            f"Received: fill_value={fill_value!r}"
        )
    return fill * (channels // len(fill))


def _read(
    values: Any,
    at: list[Any],
    sampler: str,
    padding: str,
    fill: Any,
    align_corners: bool,
    aligned: bool = False,
) -> Any:
    """Read `(batch, ..., channels)` at pixel coordinates, one tensor per axis."""
    size = values.shape[1:-1]
    if sampler == "bilinear" and (fill or padding == "border") and bilinear.suits(values, at):
        return _read_bilinear(values, at, fill)
    _, reach, _ = KERNELS[sampler]
    by_axis = aligned and separable.pays(size, reach)
    if by_axis:
        at = [_line(coordinate, axis) for axis, coordinate in enumerate(at)]
    taps = [
        _taps(coordinate, n, sampler, padding, align_corners)
        for coordinate, n in zip(at, size, strict=True)
    ]
    if by_axis:
        return separable.read(values, taps, fill)
    pixels = ops.reshape(values, (-1, values.shape[-1]))
    return _gather(pixels, _rows(values, at[0], math.prod(size)), taps, size, fill)


def _read_bilinear(values: Any, at: list[Any], fill: Any) -> Any:
    """The same as `_read`, the fast way."""
    if fill is None:
        # At the last pixel the border begins: no slope there.
        at = [
            ops.where(c >= n - 1, n - 1.0, clip(c, 0.0, n - 1.0))
            for c, n in zip(at, values.shape[1:-1], strict=True)
        ]
    if not any(fill or ()):
        return bilinear.read(values, at)
    outside = 1.0 - bilinear.cover(at, values.shape[1:-1])
    return bilinear.read(values, at) + outside * ops.convert_to_tensor(fill, values.dtype)


def _line(coordinate: Any, axis: int) -> Any:
    """The coordinate of an aligned grid along its own axis, `(batch, output)`."""
    ahead, behind = axis, len(coordinate.shape) - axis - 2
    return coordinate[(slice(None), *(0,) * ahead, slice(None), *(0,) * behind)]


def _rows(values: Any, like: Any, pixels: int) -> Any:
    """Where each image of the batch starts in a table of all their pixels."""
    first = ops.arange(ops.shape(values)[0], dtype="int32") * pixels
    return ops.reshape(first, (-1,) + (1,) * (len(like.shape) - 1))


def _gather(pixels: Any, first: Any, taps: list[Any], size: Any, fill: Any) -> Any:
    """Weigh the pixels around each point: the product of what each axis contributes.

    Args:
        pixels: A table `(rows, channels)`.
        first: The row where each image starts; broadcasts against the points.
        taps: For each axis its `(index, is inside, weight)`, as from `_taps`.
        size: The length of each axis, as numbers or tensors.
        fill: See `_fill`.
    """
    total, inside_weight = 0.0, 0.0
    wide = len(taps[-1]) > 2
    if wide:  # many pixels that lie side by side are read at once
        taps = [
            [tuple(ops.expand_dims(part, -1) for part in tap) for tap in axis] for axis in taps[:-1]
        ] + [[tuple(ops.stack(part, axis=-1) for part in zip(*taps[-1], strict=True))]]
        first = ops.expand_dims(first, -1)
    for combination in itertools.product(*taps):
        index, weight, inside = 0, 1.0, True
        for (position, is_inside, share), length in zip(combination, size, strict=True):
            index, weight = index * length + position, weight * share
            inside = ops.logical_and(inside, is_inside)
        if fill is not None:
            weight = ops.where(inside, weight, 0.0 * weight)
        weight = ops.cast(ops.expand_dims(weight, -1), pixels.dtype)
        part = weight * ops.take(pixels, first + index, axis=0)
        total = total + (ops.sum(part, axis=-2) if wide else part)
        inside_weight = inside_weight + (ops.sum(weight, axis=-2) if wide else weight)
    if fill is not None and any(fill):
        total = total + (1.0 - inside_weight) * ops.convert_to_tensor(fill, pixels.dtype)
    return total


def _taps(
    coordinate: Any, size: int, sampler: str, padding: str, align_corners: bool
) -> list[tuple[Any, Any, Any]]:
    """The pixels an axis contributes at each coordinate: (safe index, is inside, weight)."""
    first, _, weigh = KERNELS[sampler]
    if padding not in ("reflection", "circular"):
        # Beyond the reach of the kernel all is the same; this keeps infinities out of the weights.
        coordinate = clip(coordinate, first - 2.0, size + 1.0 - first)
    if sampler == "nearest":
        base = ops.cast(ops.round(coordinate), coordinate.dtype)
        share = ops.where(ops.isfinite(coordinate), 0.0 * ops.ones_like(coordinate), np.nan)
    else:
        base = floor(coordinate)
        share = coordinate - base
    return [
        (*_pixel(base + (first + k), size, padding, align_corners), weight)
        for k, weight in enumerate(weigh(share))
    ]


def _pixel(at: Any, size: Any, padding: str, align_corners: bool) -> tuple[Any, Any]:
    """The safe int32 index of the pixel that stands at whole positions, and whether it is inside.

    `size` may be a tensor that broadcasts against the positions, except with reflection.
    """
    inside = ops.logical_and(at >= 0, at <= size - 1)
    if padding == "reflection":
        at = _mirror(at, size, align_corners)
    elif padding == "circular":
        at = at - size * floor((at + 0.5) / size)
    # A NaN compares false, so it becomes index 0 and never reads out of range.
    at = ops.where(at >= 0, at, ops.zeros_like(at))
    at = ops.where(at < size - 1, at, (size - 1) + ops.zeros_like(at))
    return ops.cast(at, "int32"), inside


def _mirror(at: Any, size: int, align_corners: bool) -> Any:
    """Fold positions into the image by a triangle wave between mirrors at its normalized ends."""
    low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
    if span == 0:
        return at * 0.0
    offset = ops.abs(at - low)
    offset = offset - 2 * span * floor(offset / (2 * span))
    return low + span - ops.abs(span - offset)


def _linear(share: Any) -> list[Any]:
    return [1.0 - share, share]


def _cubic(share: Any) -> list[Any]:
    a = -0.75

    def near(x: Any) -> Any:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Any) -> Any:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [far(1 + share), near(share), near(1 - share), far(2 - share)]


def _lanczos(share: Any) -> list[Any]:
    # sin(pi x) is the same for all pixels but for the sign; 1 - share is exact where it is used.
    wave = cos_sin(np.pi * ops.where(share < 0.5, share, 1.0 - share))[1]
    weights = []
    for k in range(-2, 4):
        x = share - k
        near = ops.abs(x) < 1e-4
        safe = ops.where(near, ops.ones_like(x), x)
        window = cos_sin(np.pi / 3 * safe)[1]
        weight = (-1.0) ** k * 3 / np.pi**2 * wave * window / (safe * safe)
        weights.append(ops.where(near, 1 - 5 * np.pi**2 / 27 * x * x, weight))
    total = sum(weights)
    return [weight / total for weight in weights]


KERNELS: dict[str, tuple[int, int, Any]] = {
    "nearest": (0, 1, lambda share: [1.0 + share]),
    "bilinear": (0, 2, _linear),
    "bicubic": (-1, 4, _cubic),
    "lanczos3": (-2, 6, _lanczos),
}
"""By name: the first pixel that counts along an axis, from the one at or before the point, how many
count, and their weights, given how far the point lies beyond that one (0 to 1)."""


def _read_antialiased(
    values: Any, at: list[Any], padding: str, fill: Any, align_corners: bool
) -> Any:
    """Blend, along every axis, the two levels of a pyramid that suit the distance of the points."""
    size = values.shape[1:-1]
    if len(at[0].shape) != len(size) + 1:
        raise ValueError(
            "Expected points that form a grid, one axis for each of the image's, with "
            f"sampler='antialiased'. Received: points.shape={(*at[0].shape, len(size))}"
        )
    atlas, starts = filters.pyramid(values)
    lengths = [np.array(filters.level_sizes(n)) for n in size]
    levels = [_level(coordinate, len(n)) for coordinate, n in zip(at, lengths, strict=True)]
    if padding == "reflection":  # fold at the mirrors of the image; each level ends at its edge
        at = [_mirror(c, n, align_corners) for c, n in zip(at, size, strict=True)]
        padding = "border"
    pixels = ops.reshape(atlas, (-1, values.shape[-1]))
    first = _rows(values, at[0], atlas.shape[1])
    dtype = keras.backend.standardize_dtype(at[0].dtype)
    result = 0.0
    for upper in itertools.product((0, 1), repeat=len(size)):
        blend, start, taps, extent, counts = 1.0, 0, [], [], True
        for axis, (lower, share) in enumerate(levels):
            # Keras makes a float32 of this on JAX where its own default is bfloat16.
            level = ops.cast(ops.minimum(lower + upper[axis], len(lengths[axis]) - 1), "int32")
            blend = blend * (share if upper[axis] else 1.0 - share)
            if upper[axis]:  # which a pixel that is NaN spoils whole
                counts = ops.logical_and(counts, ops.logical_or(lower > 0, share > 0))
            start = start * len(lengths[axis]) + level
            length = ops.take(ops.convert_to_tensor(lengths[axis], "int32"), level)
            smaller = ops.cast(length, dtype)
            extent.append(length)
            position = (at[axis] + 0.5) * (smaller / size[axis]) - 0.5
            if padding != "circular":
                position = clip(position, -2.0, smaller + 1.0)
            base = floor(position)
            weights = _linear(position - base)
            taps.append([(*_pixel(base + k, smaller, padding, False), weights[k]) for k in (0, 1)])
        start = ops.take(ops.convert_to_tensor(starts.ravel(), "int32"), start)
        part = _gather(pixels, first + start, taps, extent, fill)
        part = ops.cast(ops.expand_dims(blend, -1), part.dtype) * part
        if any(upper):
            part = ops.where(ops.expand_dims(counts, -1), part, ops.zeros_like(part))
        result = result + part
    return result


def _level(coordinate: Any, count: int) -> tuple[Any, Any]:
    """The level of a pyramid along one axis, as its whole part (int32) and the rest (0 to 1).

    The distance of neighboring points is the length of the derivatives of the coordinate by the
    axes of the grid: for turned grids the larger extent counts.
    """
    square = 0.0
    for axis in range(1, len(coordinate.shape)):
        n = coordinate.shape[axis]
        if n == 1:
            continue

        def part(start: int, stop: int, axis: int = axis) -> Any:
            return coordinate[(slice(None),) * axis + (slice(start, stop),)]

        steps = [part(1, 2) - part(0, 1), part(n - 1, n) - part(n - 2, n - 1)]
        if n > 2:
            steps.insert(1, (part(2, n) - part(0, n - 2)) / 2)
        square = square + ops.square(ops.concatenate(steps, axis=axis))
    if isinstance(square, float):
        square = 0.0 * coordinate
    # NaN compares false: level 0.
    level = clip(
        0.5 * ops.log2(ops.where(square > 1, square, ops.ones_like(square))), 0.0, count - 1.0
    )
    lower = floor(level)
    return ops.cast(lower, "int32"), level - lower


def _read_linearized(
    values: Any, at: list[Any], padding: str, fill: Any, align_corners: bool
) -> Any:
    """The values of bilinear, with the slope of planes fitted around each point as gradient."""
    size = values.shape[1:-1]
    still = [ops.stop_gradient(coordinate) for coordinate in at]
    result = _read(values, still, "bilinear", padding, fill, align_corners)
    fixed = ops.stop_gradient(values)
    fixed = ops.where(ops.isfinite(fixed), fixed, ops.zeros_like(fixed))  # it would spoil them all
    if fill is not None:
        fixed = fixed - ops.convert_to_tensor(fill, fixed.dtype)
    slopes, margin = filters.slopes(fixed, padding, align_corners)
    for axis, (n, slope) in enumerate(zip(size, slopes, strict=True)):
        near = clip(at[axis], -margin - 1.0, n + margin + 1.0)
        zero = (0.0,) * values.shape[-1]
        slope = _read(slope, [c + margin for c in still], "bilinear", "zeros", zero, False)
        change = ops.cast(near - ops.stop_gradient(near), values.dtype)  # 0, with a gradient of 1
        result = result + slope * ops.expand_dims(change, -1)
    return result


def _inward(values: Any, at: list[Any], fill: Any) -> Any:
    """Zero, with the gradient of a picture whose mean color fades with the distance from it."""
    distance = 0.0
    for coordinate, n in zip(at, values.shape[1:-1], strict=True):
        beyond = ops.relu(ops.abs(coordinate - (n - 1) / 2) - n / 2)
        distance = distance + beyond / (n / 2)
    closeness = 1.0 / (1.0 + distance)
    change = ops.cast(closeness - ops.stop_gradient(closeness), values.dtype)
    mean = ops.mean(values, axis=tuple(range(1, len(values.shape) - 1)))
    mean = ops.stop_gradient(mean) - ops.convert_to_tensor(fill, values.dtype)
    mean = ops.reshape(mean, (-1,) + (1,) * (len(change.shape) - 1) + (values.shape[-1],))
    return mean * ops.expand_dims(change, -1)


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
    if not is_float64(values):
        return ops.cast(ops.floor(values), values.dtype)
    low = ops.trunc(values)
    return low - ops.cast(low > values, values.dtype)


def clip(values: Any, low: Any, high: Any) -> Any:
    """Clip; the gradient is 1 inside and 0 outside, NaN stays NaN, float64 stays float64."""
    values = ops.where(values < low, low + ops.zeros_like(values), values)
    return ops.where(values > high, high + ops.zeros_like(values), values)


def cos_sin(angle: Any) -> tuple[Any, Any]:
    """The cosine and the sine of angles in radians, in the type of the angles."""
    if not is_float64(angle):
        return ops.cos(angle), ops.sin(angle)
    # Keras rounds float64 to float32 here on JAX. So: the Taylor series of a sixteenth of the
    # angle, less than 0.2, which is exact to 1e-16; then the angle is doubled four times.
    turns = floor(angle / (2 * np.pi) + 0.5)
    t = (angle - 2 * np.pi * turns) / 16
    cos = 1 + sum((-1) ** k * t ** (2 * k) / math.factorial(2 * k) for k in range(1, 7))
    sin = sum((-1) ** k * t ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(7))
    for _ in range(4):
        cos, sin = cos * cos - sin * sin, 2 * cos * sin
    return cos, sin


def image_size(images: Any, data_format: str | None) -> tuple[int, ...]:
    """The size of a batch of images or volumes; see `shape_size`."""
    return shape_size(images.shape, data_format)


def shape_size(shape: Any, data_format: str | None) -> tuple[int, ...]:
    """The `(height, width)` or `(depth, height, width)` in the shape of a batch.

    Args:
        shape: Four numbers, or five for volumes; the batch may be None.
        data_format: `"channels_last"`, `"channels_first"`, or None for the Keras setting.

    Raises:
        ValueError: If the shape is not one of images, or an axis but the batch is unknown or 0.
    """
    shape = tuple(shape)
    if len(shape) not in (4, 5):
        raise ValueError(
            "Expected images of shape (batch, height, width, channels), or volumes of shape "
            "(batch, depth, height, width, channels); with data_format='channels_first' the "
            f"channels follow the batch. Received: shape={shape}"
        )
    if not all(shape[1:]):
        raise ValueError(
            "Expected images of known height and width, at least 1 pixel each, and a known number "
            f"of channels. Received: shape={shape}"
        )
    return shape[2:] if check_data_format(data_format) == "channels_first" else shape[1:-1]


def check_options(sampler: str, padding: str, fill_value: Any) -> None:
    """Raise a ValueError unless sampler, padding and fill value are valid together."""
    if sampler not in SAMPLERS:
        raise ValueError(f"Expected sampler to be one of {SAMPLERS}. Received: sampler={sampler!r}")
    if padding not in PADDINGS:
        raise ValueError(f"Expected padding to be one of {PADDINGS}. Received: padding={padding!r}")
    if any(fill_values(fill_value)) and padding not in ("constant", "inward"):
        raise ValueError(
            "Expected fill_value only together with padding='constant' or 'inward'. "
            f"Received: fill_value={fill_value!r}, padding={padding!r}"
        )


def fill_values(fill_value: Any) -> tuple[float, ...]:
    """The numbers of a fill value; raise a ValueError if it is not made of numbers."""
    fill = fill_value.tolist() if isinstance(fill_value, np.ndarray) else fill_value
    values = tuple(fill) if isinstance(fill, Iterable) else (fill,)
    if values and all(isinstance(n, int | float | np.number) for n in values):
        return tuple(float(n) for n in values)
    raise ValueError(
        "Expected fill_value to be a number, or one for each channel. "
        f"Received: fill_value={fill_value!r}"
    )


def check_points(points: Any, dimensions: int) -> None:
    """Raise a ValueError unless a tensor has the shape of a batch of points."""
    if len(points.shape) < 2 or points.shape[-1] != dimensions:
        raise ValueError(
            f"Expected points of shape (batch, ..., {dimensions}). "
            f"Received: points.shape={tuple(points.shape)}"
        )


def check_batches(tensor: Any, name: str, other: Any, *, first: str = "images") -> None:
    """Raise a ValueError if both batch sizes are known and differ."""
    if None not in (tensor.shape[0], other.shape[0]) and tensor.shape[0] != other.shape[0]:
        raise ValueError(
            f"Expected {first} and {name} of the same batch size. Received: "
            f"{first}.shape={tuple(tensor.shape)}, {name}.shape={tuple(other.shape)}"
        )


def to_channels_last(images: Any, data_format: str | None) -> Any:
    """Move the channels of a batch to the end, if they are not there."""
    first = check_data_format(data_format) == "channels_first"
    return ops.moveaxis(images, 1, -1) if first else images


def from_channels_last(images: Any, data_format: str | None) -> Any:
    """Move the channels of a batch from the end to where the data format has them."""
    first = check_data_format(data_format) == "channels_first"
    return ops.moveaxis(images, -1, 1) if first else images


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
