"""What every family of transformations has: parameters, an identity, bounds, and a way back.

A transform maps points of the **output** to the points of the **input** that are read there. So
scale 0.5 zooms in, and a positive translation in x shows what lies further right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from stn import samplers


class Transform:
    """A family of transformations: what its parameters are and how they move points.

    Attributes:
        name: What it is called; in `TRANSFORMS` it is found by that.
        parameters: What each parameter is called, in order. Translations and displacements are in
            normalized units (2 is the whole image), scales are factors, angles are radians; a
            positive angle turns the picture counterclockwise.
        identity: The parameters that leave every point where it is.
        dimensions: 2 for images, 3 for volumes.
        limits: What `bounds` can limit: see `bound`.
        aligned: Whether every coordinate alone decides what becomes of it: rows of pixels stay
            rows, and columns columns, so that both can be read by themselves.

    A new family is a subclass that calls `__init__` and defines `move`; with `get_config`, and
    registered with `keras.saving.register_keras_serializable`, it can be saved in a layer.

    Example:
        >>> from stn import get_transform
        >>> family = get_transform("attention")
        >>> family.size, family.parameters
        (3, ('scale', 'x', 'y'))
    """

    aligned = False

    def __init__(
        self,
        name: str,
        parameters: Sequence[str],
        identity: Sequence[float],
        *,
        dimensions: int = 2,
        limits: Sequence[str] = (),
    ):
        self.name = name
        self.parameters = tuple(parameters)
        self.identity = tuple(float(value) for value in identity)
        self.dimensions = dimensions
        self.limits = tuple(limits)

    def __repr__(self) -> str:
        return f"<Transform {self.name!r} of {self.size} parameters, {self.dimensions}-D>"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Transform:
        """Create the family from what its `get_config` returned."""
        return cls(**config)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return len(self.parameters)

    def __call__(
        self,
        params: Any,
        points: Any,
        *,
        size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Any:
        """Map output points to the input points that are read there.

        Args:
            params: `(batch, size)`.
            points: `(batch, ..., dimensions)` or `(1, ..., dimensions)` normalized points.
            size: `(height, width)` or `(depth, height, width)` of the image that is read, so that
                rotations turn in pixel space; square by default.
            align_corners: Corner convention, see `stn.grids`.

        Returns:
            `(batch, ..., dimensions)` normalized points, float64 if any argument is, else float32.

        Raises:
            ValueError: If the shape of `params` or `points` does not fit.

        Example:
            >>> import numpy as np
            >>> from stn import get_transform
            >>> moved = get_transform("translation")(np.array([[0.5, 0.0]]), np.zeros((1, 2)))
            >>> np.asarray(moved).tolist()
            [[0.5, 0.0]]
        """
        params, points = self.check_points(params, points)
        return self.move(params, points, size, align_corners)

    def columns(self, params: Any, points: Any, **options: Any) -> list[Any]:
        """The same as a call, but one tensor for each coordinate: x, y[, z].

        Sampling wants them so; side by side they would have to be taken apart again.
        """
        moved = self(params, points, **options)
        return [moved[..., axis] for axis in range(self.dimensions)]

    def move(
        self, params: Any, points: Any, size: tuple[int, ...] | None, align_corners: bool
    ) -> Any:
        """Map points after validation: tensors of one float type; either batch may be 1."""
        raise NotImplementedError

    def move_back(
        self,
        params: Any,
        points: Any,
        *,
        size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Any:
        """Map input points to the output points that read them: the inverse of a call.

        In closed form where the family has `inverse`, each part by its own for compositions.
        Otherwise by Newton's method: twelve steps from the point itself, each as long as a
        quarter of the image at most, with derivatives by differences. It finds the point where the
        transform does not fold there; a point it has not found within 1e-3 is NaN.

        Args:
            params: `(batch, size)`.
            points: `(batch, ..., dimensions)` or `(1, ..., dimensions)` normalized points.
            size: As in a call.
            align_corners: As in a call.

        Returns:
            `(batch, ..., dimensions)` normalized points.

        Raises:
            ValueError: If the shape of `params` or `points` does not fit.

        Example:
            >>> import numpy as np
            >>> from stn import get_transform
            >>> zoom = np.array([[0.5, 0.0, 0.0]])
            >>> np.asarray(get_transform("attention").move_back(zoom, np.ones((1, 2)))).tolist()
            [[2.0, 2.0]]
        """
        params, points = self.check_points(params, points)
        if self.invertible:
            inverse = self.inverse(params, size=size, align_corners=align_corners)
            return self.move(inverse, points, size, align_corners)
        return self._newton(params, points, size, align_corners)

    def _newton(self, params: Any, target: Any, size: Any, align_corners: bool) -> Any:
        step = 1e-5 if samplers.is_float64(target) else 1e-3
        axes = range(self.dimensions)
        steps = ops.convert_to_tensor(step * np.eye(self.dimensions), target.dtype)
        found = target + 0.0 * self.move(params, target, size, align_corners)
        for _ in range(12):
            error = self.move(params, found, size, align_corners) - target
            columns = [
                (
                    self.move(params, found + steps[axis], size, align_corners)
                    - self.move(params, found - steps[axis], size, align_corners)
                )
                / (2 * step)
                for axis in axes
            ]
            inverse = invert([[columns[j][..., i] for j in axes] for i in axes])
            change = [sum(inverse[i][j] * error[..., j] for j in axes) for i in axes]
            found = found - samplers.clip(ops.stack(change, axis=-1), -0.5, 0.5)
        error = ops.abs(self.move(params, found, size, align_corners) - target)
        missed = ops.logical_not(ops.sum(error, axis=-1, keepdims=True) < 1e-3)
        return ops.where(missed, np.nan + 0.0 * found, found)

    @property
    def invertible(self) -> bool:
        """Whether the inverse of every member is in the family, in closed form."""
        return type(self).inverse is not Transform.inverse

    @property
    def composable(self) -> bool:
        """Whether two members after one another are in the family, in closed form."""
        return type(self).compose is not Transform.compose

    def inverse(
        self, params: Any, *, size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Any:
        """The parameters of the inverse transformation, where the family has it in closed form.

        Args:
            params: `(batch, size)`.
            size: As in a call.
            align_corners: As in a call.

        Returns:
            `(batch, size)`. A transformation that has no inverse (scale 0) gives infinities or
            NaN.

        Raises:
            ValueError: If there is no closed form; `stn.transform_points(..., inverse=True)` maps
                points back all the same.
        """
        raise ValueError(self._lacks("an inverse in closed form"))

    def compose(
        self,
        first: Any,
        second: Any,
        *,
        size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Any:
        """The parameters of two transformations after one another, where the family has them.

        `warp(images, compose(a, b))` is `warp(warp(images, a), b)`, without sampling twice; on
        points it is `a` of `b` of the points.

        Args:
            first: `(batch, size)`, the one applied to the image first.
            second: `(batch, size)`, the one applied to the result.
            size: As in a call.
            align_corners: As in a call.

        Returns:
            `(batch, size)`.

        Raises:
            ValueError: If there is no closed form; `stn.Composition` composes any families.
        """
        raise ValueError(self._lacks("a composition in closed form"))

    def matrix(
        self, params: Any, *, size: tuple[int, ...] | None = None, align_corners: bool = False
    ) -> Any:
        """The matrices in normalized coordinates, as `torch.nn.functional.affine_grid` takes them.

        Args:
            params: `(batch, size)`.
            size: As in a call.
            align_corners: As in a call.

        Returns:
            `(batch, dimensions, dimensions + 1)`, or square with one row more for the projective
            family; float64 if `params` is, else float32.

        Raises:
            ValueError: If the shape of `params` does not fit, or the family has no matrix form.

        Example:
            >>> import numpy as np
            >>> from stn import get_transform
            >>> matrix = get_transform("attention").matrix(np.array([[0.5, 0.25, -1.0]]))
            >>> np.asarray(matrix).tolist()
            [[[0.5, 0.0, 0.25], [0.0, 0.5, -1.0]]]
        """
        raise ValueError(self._lacks("a matrix form"))

    def _lacks(self, what: str) -> str:
        return (
            f"Expected a transform that has {what}. Received: {self.name!r}, which has none; "
            "see the table of families in the documentation"
        )

    def bound(
        self,
        offset: Any,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        *,
        size: tuple[int, ...] | None = None,
        align_corners: bool = False,
    ) -> Any:
        """Turn free numbers into parameters within bounds, zeros into the identity.

        Near zero an unbounded and a bounded number do the same; towards the bound it bends
        smoothly (`squash`), and its gradient never vanishes.

        Args:
            offset: `(batch, size)` unbounded.
            bounds: `(low, high)` for some of `limits`: `"scale"` (factor), `"angle"` (radians),
                `"shear"` (tangent), `"perspective"` (change of the denominator across half the
                image), and as a fraction of the image `"shift"` and `"displacement"`. See
                `check_bounds`.
            size: As in a call.
            align_corners: As in a call.

        Returns:
            `(batch, size)` parameters.

        Example:
            >>> import numpy as np
            >>> from stn import get_transform
            >>> family = get_transform("rotation")
            >>> far = family.bound(np.array([[1e6]]), family.check_bounds({"angle": 0.5}))
            >>> round(float(far[0, 0]), 3)
            0.5
        """
        offset = self.check(offset)
        if bounds:
            offset = ops.stack(
                [limit(offset[:, i], kind(p), bounds) for i, p in enumerate(self.parameters)],
                axis=-1,
            )
        return offset + ops.convert_to_tensor(self.identity, offset.dtype)

    def check_bounds(self, bounds: Mapping[str, Any] | None) -> dict[str, tuple[float, float]]:
        """Validate bounds, and write each as `(low, high)`.

        Args:
            bounds: For each of `limits`, or some, `(low, high)` around the identity, or one
                number: `s` stands for `(1 / s, s)` for a scale, else for `(-s, s)`.

        Raises:
            ValueError: If the family has no such limit, or the identity is not inside.

        Example:
            >>> from stn import get_transform
            >>> get_transform("rigid").check_bounds({"angle": 0.5})
            {'angle': (-0.5, 0.5)}
        """
        if bounds is not None and not isinstance(bounds, Mapping):
            raise ValueError(
                f"Expected bounds to be a dictionary with some of {self.limits}. "
                f"Received: bounds={bounds!r}"
            )
        checked = {}
        for key, value in (bounds or {}).items():
            center = 1.0 if key == "scale" else 0.0
            low = high = np.nan
            with contextlib.suppress(TypeError, ValueError):  # refused below
                if np.ndim(value) == 0:
                    value = (1 / value if value else 0, value) if center else (-value, value)
                low, high = (float(n) for n in value)
            if key not in self.limits or not low < center < high or (center and low <= 0):
                raise ValueError(
                    f"Expected bounds of the {self.name!r} transform for some of {self.limits}, "
                    f"each (low, high) with low < {center:g} < high, or one number. "
                    f"Received: bounds={dict(bounds or {})!r}"
                )
            checked[key] = (low, high)
        return checked

    def check(self, params: Any) -> Any:
        """Convert to a float tensor of shape `(batch, size)`, or raise a ValueError."""
        params = samplers.float_tensor(params)
        if len(params.shape) != 2 or params.shape[1] != self.size:
            names = self.parameters if self.size <= 12 else (*self.parameters[:4], "...")
            raise ValueError(
                f"Expected params of shape (batch, {self.size}) for the {self.name!r} transform: "
                f"{', '.join(names)}. Received: params.shape={tuple(params.shape)}"
            )
        return params

    def check_points(self, params: Any, points: Any) -> tuple[Any, Any]:
        """Convert parameters and points to tensors of one float type, or raise a ValueError."""
        params, points = self.check(params), samplers.float_tensor(points)
        samplers.check_points(points, self.dimensions)
        if points.shape[0] != 1 and params.shape[0] != 1:
            samplers.check_batches(points, "params", params, first="points")
        return alike(params, points)


def alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Two float tensors in one type: float64 if either is."""
    if samplers.is_float64(a) or samplers.is_float64(b):
        return ops.cast(a, "float64"), ops.cast(b, "float64")
    return a, b


def squash(offset: Any, low: float, high: float) -> Any:
    """Bend a free number smoothly into `(low, high)` around 0.

    The solution of `y / (1 - y^2) = offset` for y, in units of the bound: slope 1 at 0, and a
    gradient that falls with the square of the offset only, so that nothing gets stuck at a bound.

    Args:
        offset: Float tensor.
        low: Below 0.
        high: Above 0.

    Example:
        >>> import numpy as np
        >>> [round(float(x), 3) for x in squash(np.array([-1e6, 0.0, 0.01, 1e6]), -0.5, 0.5)]
        [-0.5, 0.0, 0.01, 0.5]
    """
    offset = samplers.float_tensor(offset)
    zero = ops.zeros_like(offset)
    scale = ops.where(offset < 0, zero - low, zero + high)
    offset = samplers.clip(offset, -1e18 * scale, 1e18 * scale)  # squares stay finite
    return 2 * offset / (1 + ops.sqrt(1 + 4 * ops.square(offset / scale)))


def limit(offset: Any, quantity: str, bounds: Mapping[str, tuple[float, float]]) -> Any:
    """Squash the offset of a quantity from the identity, if it is bounded."""
    if quantity not in bounds:
        return offset
    center = 1.0 if quantity == "scale" else 0.0
    factor = 2.0 if quantity in ("shift", "displacement") else 1.0  # normalized units an image
    low, high = bounds[quantity]
    return squash(offset, factor * (low - center), factor * (high - center))


def kind(parameter: str) -> str:
    """What bounds call a parameter: `scale_x` is a scale, `x` a shift."""
    return "shift" if parameter in ("x", "y", "z") else parameter.split("_")[0]


Rows = list[list[Any]]


def invert(matrix: Rows) -> Rows:
    """Invert matrices given by their entries, 2x2 or 3x3, by cofactors."""
    n = len(matrix)
    if n == 2:
        (a, b), (c, d) = matrix
        determinant = a * d - b * c
        return [[d / determinant, -b / determinant], [-c / determinant, a / determinant]]
    cofactors = adjugate(matrix)
    determinant = sum(matrix[0][k] * cofactors[k][0] for k in range(3))
    return [[entry / determinant for entry in row] for row in cofactors]


def adjugate(m: Rows) -> Rows:
    """The inverse of 3x3 matrices times their determinant."""
    return [
        [
            m[(j + 1) % 3][(i + 1) % 3] * m[(j + 2) % 3][(i + 2) % 3]
            - m[(j + 1) % 3][(i + 2) % 3] * m[(j + 2) % 3][(i + 1) % 3]
            for j in range(3)
        ]
        for i in range(3)
    ]
