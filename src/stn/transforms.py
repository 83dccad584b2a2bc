"""Transforms applied: the table of families, `warp`, and the same for points and boxes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from stn import bilinear, deformations, grids, matrices, samplers
from stn.families import Transform
from stn.symbolic import functional

FAMILIES: dict[tuple[str, int], Transform] = {
    (family.name, family.dimensions): family
    for family in (
        *matrices.MATRICES,
        deformations.ThinPlateSpline(4),
        deformations.Flow(7),
        deformations.Diffeomorphic(5),
        deformations.Flow(4, dimensions=3),
        deformations.Diffeomorphic(4, dimensions=3),
    )
}
"""All families by name and number of dimensions."""

TRANSFORMS: dict[str, Transform] = {
    name: family for (name, dimensions), family in FAMILIES.items() if dimensions == 2
}
"""The families of images by name, the least free first; `get_transform` has those of volumes."""


def get_transform(transform: str | Transform, *, dimensions: int = 2) -> Transform:
    """Return a family by name; a family is returned as it is.

    Args:
        transform: A name in `TRANSFORMS`, or a family.
        dimensions: 2 for images, 3 for volumes.

    Returns:
        The family.

    Raises:
        ValueError: If there is no such family for so many dimensions.

    Example:
        >>> get_transform("affine").size, get_transform("affine", dimensions=3).size
        (6, 12)
    """
    if isinstance(transform, Transform):
        if transform.dimensions == dimensions:
            return transform
    elif isinstance(transform, str) and (transform, dimensions) in FAMILIES:
        return FAMILIES[transform, dimensions]
    names = tuple(name for name, n in FAMILIES if n == dimensions)
    kind = {2: "images", 3: "volumes"}.get(dimensions, "2 or 3 dimensions")
    raise ValueError(
        f"Expected transform to be one of {names}, or a Transform for {kind}. "
        f"Received: transform={transform!r}, dimensions={dimensions}"
    )


@keras.saving.register_keras_serializable(package="stn")
class Composition(Transform):
    """Several transformations after one another, sampled once.

    `warp(images, [a, b], Composition([f, g]))` is what `warp(warp(images, a, f), b, g)` would be
    without sampling twice. Its parameters are those of the parts, in order.

    Args:
        transforms: Families or their names, the one applied to the image first comes first.
        dimensions: 2 for images, 3 for volumes.

    Raises:
        ValueError: If there is none, or they are not of the same number of dimensions.

    Example:
        >>> family = Composition(["similarity", "tps"])
        >>> family.size, family.name
        (36, 'similarity+tps')
    """

    def __init__(self, transforms: Iterable[str | Transform], *, dimensions: int = 2):
        self.transforms = tuple(get_transform(t, dimensions=dimensions) for t in transforms)
        if not self.transforms:
            raise ValueError("Expected at least one transform. Received: transforms=()")
        super().__init__(
            "+".join(t.name for t in self.transforms),
            [f"{t.name}{i}_{p}" for i, t in enumerate(self.transforms) for p in t.parameters],
            [value for t in self.transforms for value in t.identity],
            dimensions=dimensions,
            limits=list(dict.fromkeys(limit for t in self.transforms for limit in t.limits)),
        )
        self.aligned = all(t.aligned for t in self.transforms)

    def split(self, params: Any) -> list[Any]:
        """The parameters of each part."""
        ends = list(itertools.accumulate(t.size for t in self.transforms))
        return [params[:, end - t.size : end] for t, end in zip(self.transforms, ends, strict=True)]

    def move(self, params: Any, points: Any, size: Any, align_corners: bool) -> Any:
        """See `Transform.move`."""
        parts = zip(self.transforms, self.split(params), strict=True)
        for transform, part in reversed(list(parts)):
            points = transform.move(part, points, size, align_corners)
        return points

    def move_back(
        self, params: Any, points: Any, *, size: Any = None, align_corners: bool = False
    ) -> Any:
        """See `Transform.move_back`."""
        params, points = self.check_points(params, points)
        for transform, part in zip(self.transforms, self.split(params), strict=True):
            points = transform.move_back(part, points, size=size, align_corners=align_corners)
        return points

    def bound(
        self, offset: Any, bounds: Any = None, *, size: Any = None, align_corners: bool = False
    ) -> Any:
        """See `Transform.bound`; every part takes the bounds it knows."""
        return ops.concatenate(
            [
                t.bound(part, bounds, size=size, align_corners=align_corners)
                for t, part in zip(self.transforms, self.split(self.check(offset)), strict=True)
            ],
            axis=-1,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        return {
            "transforms": [serialize(transform) for transform in self.transforms],
            "dimensions": self.dimensions,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Composition:
        """Create the family from what `get_config` returned."""
        parts = [deserialize(part) for part in config["transforms"]]
        return cls(parts, dimensions=config["dimensions"])


def serialize(transform: Transform) -> Any:
    """A family as something JSON can hold: its name, or the configuration of an object.

    Raises:
        ValueError: If it is neither in the table nor has a `get_config`.
    """
    if FAMILIES.get((transform.name, transform.dimensions)) is transform:
        return transform.name
    if not hasattr(transform, "get_config"):
        raise ValueError(
            f"Expected a transform out of {tuple(TRANSFORMS)}, or one with get_config and "
            "registered with keras.saving.register_keras_serializable, to save the layer. "
            f"Received: transform={transform!r}"
        )
    return keras.saving.serialize_keras_object(transform)


def deserialize(config: Any) -> Any:
    """The family, or its name, from what `serialize` returned."""
    return keras.saving.deserialize_keras_object(config) if isinstance(config, dict) else config


@functional(lambda images, options: samplers.image_size(images, options["data_format"]))
def warp(
    images: Any,
    params: Any,
    transform: str | Transform = "affine",
    *,
    output_size: int | Iterable[int] | None = None,
    sampler: str = "bilinear",
    padding: str = "zeros",
    fill_value: float | Iterable[float] = 0.0,
    align_corners: bool = False,
    data_format: str | None = None,
) -> Any:
    """Transform a batch of images or volumes, each with its own parameters.

    The identity returns the images themselves, exactly, at every size and in every padding.

    Args:
        images: `(batch, height, width, channels)`, or a volume `(batch, depth, height, width,
            channels)`; with `data_format="channels_first"` the channels follow the batch. Any
            float or integer type.
        params: `(batch, size)`; see `TRANSFORMS` for what they mean.
        transform: A family or its name; for volumes, names are those of three dimensions.
        output_size: `(height, width)` or `(depth, height, width)` of the result, or one number
            for all; the size of `images` by default. The result always spans the same region
            whatever its size.
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
    images = ops.convert_to_tensor(images)
    samplers.check_options(sampler, padding, fill_value)
    size = samplers.image_size(images, data_format)
    family = get_transform(transform, dimensions=len(size))
    params = family.check(params)
    samplers.check_batches(images, "params", params)
    output_size = check_output_size(output_size, len(size)) or size
    points = sampling_points(params, family, size, output_size, align_corners)
    return sample_displaced(
        images,
        points,
        aligned=family.aligned,
        sampler=sampler,
        padding=padding,
        fill_value=fill_value,
        align_corners=align_corners,
        data_format=data_format,
    )


def sampling_points(
    params: Any,
    transform: Transform,
    size: tuple[int, ...],
    output_size: tuple[int, ...],
    align_corners: bool,
) -> list[Any]:
    """The sampling grid: where in the input each output pixel is read.

    Args:
        params: `(batch, transform.size)` tensor.
        transform: The family.
        size: `(height, width)` or `(depth, height, width)` of the input.
        output_size: The same of the output.
        align_corners: Corner convention, see `stn.grids`.

    Returns:
        Normalized coordinates, one tensor `(batch, *output_size)` each: x, y[, z].
    """
    dtype = keras.backend.standardize_dtype(params.dtype)
    regular = grids.regular(output_size, align_corners)[None].astype(dtype)
    return transform.columns(params, regular, size=size, align_corners=align_corners)


def sample_displaced(
    images: Any, points: list[Any], *, align_corners: bool, aligned: bool = False, **options: Any
) -> Any:
    """Read images at a sampling grid, exactly where the grid is the regular one.

    Going from normalized to pixel coordinates rounds. Here only the displacement from the regular
    grid goes that way; the regular grid itself is converted in float64. At the identity the
    displacement is 0 and every coordinate is a whole number, exactly.

    Args:
        images: Tensor, as in `stn.sample`.
        points: The coordinates of a grid, from `sampling_points`.
        align_corners: Corner convention, see `stn.grids`.
        aligned: See `Transform`.
        **options: The other keywords of `stn.sample`, all of them.
    """
    size = samplers.image_size(images, options["data_format"])
    dtype = keras.backend.standardize_dtype(points[0].dtype)
    regular = grids.regular(tuple(points[0].shape[1:]), align_corners)

    def pixels(points: list[Any], regular: Any) -> list[Any]:
        coordinates = []
        for axis, (coordinate, length) in enumerate(zip(points, reversed(size), strict=True)):
            still = regular[..., axis]
            displacement = coordinate - ops.convert_to_tensor(still, dtype)
            pixel = ops.convert_to_tensor(grids.to_pixel(still, length, align_corners), dtype)
            coordinates.append(grids.stretch(displacement, length, align_corners) + pixel)
        return coordinates

    if options["sampler"] == "bilinear" and options["padding"] in ("zeros", "border", "reflection"):
        ends = regular.reshape(-1, len(size))[[0, -1]]
        result = bilinear.read_natively(
            samplers.to_channels_last(images, options["data_format"]),
            points,
            lambda points: pixels(points, ends),
            options["padding"],
            align_corners,
        )
        if result is not None:
            return samplers.from_channels_last(result, options["data_format"])
    return samplers.sample_pixels(
        images, pixels(points, regular), align_corners=align_corners, aligned=aligned, **options
    )


@functional()
def transform_points(
    points: Any,
    params: Any,
    transform: str | Transform = "affine",
    *,
    inverse: bool = False,
    size: Iterable[int] | None = None,
    output_size: int | Iterable[int] | None = None,
    pixels: bool = False,
    align_corners: bool = False,
) -> Any:
    """Carry points between a straightened image and the original it was read from.

    Points of the output of `warp` go to where they were read in the input, as the transform maps
    them; with `inverse=True` points of the input go to where they are seen in the output. Back is
    in closed form for all families that are matrices and for the diffeomorphic one, and by
    Newton's method for thin-plate splines and flows (`Transform.move_back`), part by part for
    compositions.

    Args:
        points: `(batch, ..., 2)` `(x, y)`, or `(batch, ..., 3)` `(x, y, z)` in volumes; a batch
            of 1 is used for all parameters.
        params: `(batch, size)`, or `(1, size)` for all points.
        transform: A family or its name.
        inverse: From input to output.
        size: `(height, width)` or `(depth, height, width)` of the input. Needed with `pixels`,
            and for families that turn on images that are not square.
        output_size: The same of the output, or one number for all; as `size` by default.
        pixels: Whether points are in pixels, 0 at the center of the first pixel, rather than
            normalized.
        align_corners: Corner convention, see `stn.grids`.

    Returns:
        Points of the same kind and shape as given. NaN where none was found.

    Raises:
        ValueError: On a shape that does not fit, or `pixels` without `size`.

    Example:
        >>> import numpy as np
        >>> zoom = np.array([[0.5, 0.0, 0.0]])
        >>> options = {"size": (8, 8), "pixels": True}
        >>> np.asarray(transform_points(np.zeros((1, 2)), zoom, "attention", **options)).tolist()
        [[1.75, 1.75]]
    """
    points = samplers.float_tensor(points)
    if len(points.shape) < 2 or points.shape[-1] not in (2, 3):
        samplers.check_points(points, 2)
    family = get_transform(transform, dimensions=points.shape[-1])
    input_size = check_output_size(size, family.dimensions, "size")
    output_size = check_output_size(output_size, family.dimensions) or input_size
    if pixels and input_size is None:
        raise ValueError("Expected size with pixels=True. Received: size=None")
    source, target = (input_size, output_size) if inverse else (output_size, input_size)
    if pixels:
        points = _convert(points, source, align_corners, grids.to_normalized)
    options = {"size": input_size, "align_corners": align_corners}
    moved = (family.move_back if inverse else family)(params, points, **options)
    return _convert(moved, target, align_corners, grids.to_pixel) if pixels else moved


def _convert(points: Any, size: Any, align_corners: bool, to: Any) -> Any:
    columns = [
        to(points[..., axis], length, align_corners) for axis, length in enumerate(reversed(size))
    ]
    return ops.stack(columns, axis=-1)


def transform_boxes(
    boxes: Any,
    params: Any,
    transform: str | Transform = "affine",
    **options: Any,
) -> Any:
    """Carry boxes between a straightened image and the original, as `transform_points` does points.

    Args:
        boxes: `(batch, ..., 4)`: `(x_min, y_min, x_max, y_max)`, or `(batch, ..., 6)` in volumes:
            `(x_min, y_min, z_min, x_max, y_max, z_max)`.
        params: `(batch, size)`.
        transform: A family or its name.
        **options: The keywords of `transform_points`.

    Returns:
        The smallest upright boxes that hold the carried ones, in the same form: exactly for
        affine families; for others the edges are followed at seventeen points each.

    Raises:
        ValueError: On a shape that does not fit, or as `transform_points`.

    Example:
        >>> import numpy as np
        >>> quarter_turn = np.array([[np.pi / 2]])
        >>> box = np.array([[-0.5, -0.25, 0.5, 0.25]])
        >>> np.round(np.asarray(transform_boxes(box, quarter_turn, "rotation")), 5).tolist()
        [[-0.25, -0.5, 0.25, 0.5]]
    """
    boxes = samplers.float_tensor(boxes)
    if len(boxes.shape) < 2 or boxes.shape[-1] not in (4, 6):
        raise ValueError(
            "Expected boxes of shape (batch, ..., 4), or (batch, ..., 6) in volumes. "
            f"Received: boxes.shape={tuple(boxes.shape)}"
        )
    n = boxes.shape[-1] // 2
    steps = np.stack(np.meshgrid(*[np.linspace(0, 1, 17)] * n, indexing="ij"), -1).reshape(-1, n)
    steps = steps[((steps == 0) | (steps == 1)).any(axis=1)]  # the surface
    dtype = keras.backend.standardize_dtype(boxes.dtype)
    steps = ops.convert_to_tensor(steps, dtype)
    low, high = ops.expand_dims(boxes[..., :n], -2), ops.expand_dims(boxes[..., n:], -2)
    moved = transform_points(low + (high - low) * steps, params, transform, **options)
    return ops.concatenate([ops.min(moved, axis=-2), ops.max(moved, axis=-2)], axis=-1)


def freeze_size(size: Any, name: str = "output_size") -> Any:
    """A size as a tuple, a number or None; raise a ValueError if it cannot be one of any image."""
    if isinstance(size, list | tuple | np.ndarray):
        size = tuple(size)
        return check_output_size(size, 3 if len(size) == 3 else 2, name)
    checked = check_output_size(size, 1, name)
    return checked and checked[0]


def check_output_size(
    output_size: int | Iterable[int] | None, dimensions: int, name: str = "output_size"
) -> tuple[int, ...] | None:
    """Return a size with one number per axis, or None; raise a ValueError if it is neither."""
    if output_size is None:
        return None
    size = tuple(output_size) if isinstance(output_size, Iterable) else (output_size,) * dimensions
    if len(size) != dimensions or not all(isinstance(n, int | np.integer) and n >= 1 for n in size):
        axes = "(depth, height, width)" if dimensions == 3 else "(height, width)"
        raise ValueError(
            f"Expected {name} to be {axes}, at least 1 each, or one number. "
            f"Received: {name}={output_size!r}"
        )
    return tuple(int(n) for n in size)
