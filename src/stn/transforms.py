"""Transformation families: from parameters to a map of points.

A family is three facts (its parameters, their identity, the matrix they stand for) and follows
one direction: a transform maps points of the **output** to the points of the **input** that are
read there. So scale 0.5 zooms in, and a positive translation in x shows what lies further right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from stn import grids, samplers


@dataclass(frozen=True)
class Transform:
    """A family of transformations, all linear in homogeneous coordinates.

    Attributes:
        name: The name it is found by in `TRANSFORMS`.
        parameters: What each parameter is called, in order. Translations are in normalized
            units (2 is the whole image), scales are factors, angles are radians; a positive angle
            turns the picture counterclockwise.
        identity: The parameters that leave every point where it is.
        entries: A function from one `(batch,)` tensor per parameter, and the keyword `aspect`, to
            the two rows of the matrix: `((a, b, c), (d, e, f))`.

    Example:
        >>> family = get_transform("attention")
        >>> family.size, family.parameters
        (3, ('scale', 'x', 'y'))
    """

    name: str
    parameters: tuple[str, ...]
    identity: tuple[float, ...]
    entries: Callable[..., tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]] = field(repr=False)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return len(self.parameters)

    def __call__(self, params: Any, points: Any, *, aspect: float = 1.0) -> Any:
        """Map output points to the input points that are read there.

        Args:
            params: `(batch, size)`.
            points: `(batch, ..., 2)` or `(1, ..., 2)` normalized `(x, y)`.
            aspect: How many times as many pixels a normalized unit spans along x as along y, so
                that rotations turn in pixel space: `stn.grids.aspect(size_of_input)`.

        Returns:
            `(batch, ..., 2)` normalized points, float64 if any argument is, else float32.

        Raises:
            ValueError: If the shape of `params` or `points` does not fit.

        Example:
            >>> import numpy as np
            >>> moved = get_transform("translation")(np.array([[0.5, 0.0]]), np.zeros((1, 2)))
            >>> np.asarray(moved).tolist()
            [[0.5, 0.0]]
        """
        params, points = self.check(params), samplers.float_tensor(points)
        samplers.check_points(points)
        if points.shape[0] != 1 and params.shape[0] != 1:
            samplers.check_batches(points, "params", params, first="points")
        if samplers.is_float64(params) or samplers.is_float64(points):
            params, points = ops.cast(params, "float64"), ops.cast(points, "float64")
        (a, b, c), (d, e, f) = (
            [ops.reshape(entry, (-1,) + (1,) * (len(points.shape) - 2)) for entry in row]
            for row in self._rows(params, aspect)
        )
        x, y = points[..., 0], points[..., 1]
        return ops.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)

    def matrix(self, params: Any, *, aspect: float = 1.0) -> Any:
        """The matrices `(batch, 2, 3)`, as `torch.nn.functional.affine_grid` takes them.

        Args:
            params: `(batch, size)`.
            aspect: As in a call.

        Returns:
            `(batch, 2, 3)`, float64 if `params` is, else float32.

        Raises:
            ValueError: If the shape of `params` does not fit.

        Example:
            >>> import numpy as np
            >>> matrix = get_transform("attention").matrix(np.array([[0.5, 0.25, -1.0]]))
            >>> np.asarray(matrix).tolist()
            [[[0.5, 0.0, 0.25], [0.0, 0.5, -1.0]]]
        """
        return ops.stack([ops.stack(row, axis=-1) for row in self._rows(params, aspect)], axis=-2)

    def _rows(self, params: Any, aspect: float) -> Any:
        params = self.check(params)
        return self.entries(*(params[:, i] for i in range(self.size)), aspect=aspect)

    def check(self, params: Any) -> Any:
        """Convert to a float tensor of shape `(batch, size)`, or raise a ValueError."""
        params = samplers.float_tensor(params)
        if len(params.shape) != 2 or params.shape[1] != self.size:
            raise ValueError(
                f"Expected params of shape (batch, {self.size}) for the {self.name!r} transform: "
                f"{', '.join(self.parameters)}. Received: params.shape={tuple(params.shape)}"
            )
        return params


def _translation(x: Any, y: Any, *, aspect: float) -> Any:
    one = ops.ones_like(x)
    return (one, 0 * one, x), (0 * one, one, y)


def _attention(scale: Any, x: Any, y: Any, *, aspect: float) -> Any:
    return (scale, ops.zeros_like(scale), x), (ops.zeros_like(scale), scale, y)


def _similarity(scale: Any, angle: Any, x: Any, y: Any, *, aspect: float) -> Any:
    cos, sin = _cos_sin(angle)
    along, across = scale * cos, scale * sin
    return (along, -across / aspect, x), (across * aspect, along, y)


def _cos_sin(angle: Any) -> tuple[Any, Any]:
    if not samplers.is_float64(angle):
        return ops.cos(angle), ops.sin(angle)
    # Keras rounds float64 to float32 here on JAX. So: the Taylor series of a sixteenth of the
    # angle, less than 0.2, which is exact to 1e-16; then the angle is doubled four times.
    turns = samplers.floor(angle / (2 * np.pi) + 0.5)
    t = (angle - 2 * np.pi * turns) / 16
    cos = sum((-1) ** k * t ** (2 * k) / math.factorial(2 * k) for k in range(7))
    sin = sum((-1) ** k * t ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(7))
    for _ in range(4):
        cos, sin = cos * cos - sin * sin, 2 * cos * sin
    return cos, sin


def _affine(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, *, aspect: float) -> Any:
    return (a, b, c), (d, e, f)


TRANSFORMS: dict[str, Transform] = {
    family.name: family
    for family in (
        Transform("translation", ("x", "y"), (0, 0), _translation),
        Transform("attention", ("scale", "x", "y"), (1, 0, 0), _attention),
        Transform("similarity", ("scale", "angle", "x", "y"), (1, 0, 0, 0), _similarity),
        Transform("affine", ("a", "b", "c", "d", "e", "f"), (1, 0, 0, 0, 1, 0), _affine),
    )
}
"""All families by name, from the least to the most free."""


def get_transform(transform: str | Transform) -> Transform:
    """Return a family by name; a family is returned as it is.

    Args:
        transform: A name in `TRANSFORMS`, or a family.

    Returns:
        The family.

    Raises:
        ValueError: If there is no such family.

    Example:
        >>> get_transform("affine").size
        6
    """
    if isinstance(transform, Transform):
        return transform
    if isinstance(transform, str) and transform in TRANSFORMS:
        return TRANSFORMS[transform]
    raise ValueError(
        f"Expected transform to be one of {tuple(TRANSFORMS)}, or a Transform. "
        f"Received: transform={transform!r}"
    )


def warp(
    images: Any,
    params: Any,
    transform: str | Transform = "affine",
    *,
    output_size: int | Iterable[int] | None = None,
    sampler: str = "bilinear",
    padding: str = "zeros",
    fill_value: float = 0.0,
    align_corners: bool = False,
    data_format: str | None = None,
) -> Any:
    """Transform a batch of images, each with its own parameters.

    The identity returns the images themselves, exactly, at every size and in every padding.

    Args:
        images: `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
            `data_format="channels_first"`; any float or integer type.
        params: `(batch, size)`; see `TRANSFORMS` for what they mean.
        transform: A family or its name.
        output_size: `(height, width)` of the result, or one number for both; the size of
            `images` by default. The result always spans the same region whatever its size.
        sampler: See `stn.sample`.
        padding: See `stn.sample`.
        fill_value: See `stn.sample`.
        align_corners: Corner convention, see `stn.grids`.
        data_format: See `stn.sample`.

    Returns:
        `(batch, *output_size, channels)`, or channels first, of the type of `images`.

    Raises:
        ValueError: On an unknown option or a shape that does not fit.

    Example:
        >>> import numpy as np
        >>> image = np.arange(3, dtype="float32").reshape(1, 1, 3, 1)
        >>> one_pixel = np.array([[2 / 3, 0.0]])
        >>> np.asarray(warp(image, one_pixel, "translation")).ravel().tolist()
        [1.0, 2.0, 0.0]
    """
    images, transform = ops.convert_to_tensor(images), get_transform(transform)
    samplers.check_options(sampler, padding, fill_value)
    params = transform.check(params)
    samplers.check_batches(images, "params", params)
    size = samplers.image_size(images, data_format)
    output_size = check_output_size(output_size) or size
    points = sampling_points(params, transform, size, output_size, align_corners)
    return sample_displaced(
        images,
        points,
        sampler=sampler,
        padding=padding,
        fill_value=fill_value,
        align_corners=align_corners,
        data_format=data_format,
    )


def sampling_points(
    params: Any,
    transform: Transform,
    size: tuple[int, int],
    output_size: tuple[int, int],
    align_corners: bool,
) -> Any:
    """The sampling grid: where in the input each output pixel is read.

    Args:
        params: `(batch, transform.size)` tensor.
        transform: The family.
        size: `(height, width)` of the input.
        output_size: `(height, width)` of the output.
        align_corners: Corner convention, see `stn.grids`.

    Returns:
        Normalized points `(batch, *output_size, 2)`.
    """
    dtype = keras.backend.standardize_dtype(params.dtype)
    regular = grids.regular(output_size, align_corners)[None].astype(dtype)
    return transform(params, regular, aspect=grids.aspect(size, align_corners))


def sample_displaced(images: Any, points: Any, *, align_corners: bool, **options: Any) -> Any:
    """Read images at a sampling grid, exactly where the grid is the regular one.

    Going from normalized to pixel coordinates rounds. Here only the displacement from the regular
    grid goes that way; the regular grid itself is converted in float64. At the identity the
    displacement is 0 and every coordinate is a whole number, exactly.

    Args:
        images: Tensor, as in `stn.sample`.
        points: `(batch, height, width, 2)` from `sampling_points`.
        align_corners: Corner convention, see `stn.grids`.
        **options: The other keywords of `stn.sample`, all of them.
    """
    height, width = samplers.image_size(images, options["data_format"])
    dtype = keras.backend.standardize_dtype(points.dtype)
    regular = grids.regular(tuple(points.shape[1:3]), align_corners)
    displacement = points - ops.convert_to_tensor(regular, dtype)
    x, y = (
        displacement[..., axis] * grids.half_extent(size, align_corners)
        + ops.convert_to_tensor(grids.to_pixel(regular[..., axis], size, align_corners), dtype)
        for axis, size in ((0, width), (1, height))
    )
    return samplers.sample_pixels(images, x, y, align_corners=align_corners, **options)


def check_output_size(output_size: int | Iterable[int] | None) -> tuple[int, int] | None:
    """Return an output size as `(height, width)`, or None; raise a ValueError if it is neither."""
    if output_size is None:
        return None
    size = tuple(output_size) if isinstance(output_size, Iterable) else (output_size,) * 2
    if len(size) != 2 or not all(isinstance(n, int | np.integer) and n >= 1 for n in size):
        raise ValueError(
            "Expected output_size to be (height, width), at least 1 each, or one number. "
            f"Received: output_size={output_size!r}"
        )
    return int(size[0]), int(size[1])
