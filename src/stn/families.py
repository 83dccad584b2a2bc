"""Transformation families that are matrices, and what every family has.

A transform maps points of the **output** to the points of the **input** that are read there. So
scale 0.5 zooms in, and a positive translation in x shows what lies further right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from stn import grids, samplers


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

    A new family is a subclass that calls `__init__` and defines `move`.

    Example:
        >>> from stn import get_transform
        >>> family = get_transform("attention")
        >>> family.size, family.parameters
        (3, ('scale', 'x', 'y'))
    """

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
        units = np.eye(self.dimensions)
        found = target + 0.0 * self.move(params, target, size, align_corners)
        for _ in range(12):
            error = self.move(params, found, size, align_corners) - target
            columns = [
                (
                    self.move(params, found + step * units[axis], size, align_corners)
                    - self.move(params, found - step * units[axis], size, align_corners)
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
            kinds = [_kind(name) for name in self.parameters]
            offset = ops.stack(
                [limit(offset[:, i], kind, bounds) for i, kind in enumerate(kinds)], axis=-1
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
        checked = {}
        for key, value in (bounds or {}).items():
            center = 1.0 if key == "scale" else 0.0
            try:
                low, high = value
            except TypeError:
                low, high = (1 / value if value else 0, value) if center else (-value, value)
            if key not in self.limits or not low < center < high or (center and low <= 0):
                raise ValueError(
                    f"Expected bounds of the {self.name!r} transform for some of {self.limits}, "
                    f"each (low, high) with low < {center:g} < high, or one number. "
                    f"Received: bounds={dict(bounds or {})!r}"
                )
            checked[key] = (float(low), float(high))
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
        if samplers.is_float64(params) or samplers.is_float64(points):
            params, points = ops.cast(params, "float64"), ops.cast(points, "float64")
        return params, points


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
    offset = samplers.clip(samplers.float_tensor(offset), -1e18, 1e18)  # squares stay finite
    scale = ops.where(offset < 0, -low + 0.0 * offset, high + 0.0 * offset)
    return 2 * offset / (1 + ops.sqrt(1 + 4 * ops.square(offset / scale)))


def limit(offset: Any, kind: str, bounds: Mapping[str, tuple[float, float]]) -> Any:
    """Squash the offset from the identity of one quantity, if its kind is bounded."""
    if kind not in bounds:
        return offset
    center = 1.0 if kind == "scale" else 0.0
    factor = 2.0 if kind in ("shift", "displacement") else 1.0  # of the image in normalized units
    low, high = bounds[kind]
    return squash(offset, factor * (low - center), factor * (high - center))


def _kind(parameter: str) -> str:
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


def product(a: Rows, b: Rows) -> Rows:
    """Multiply matrices given by their entries."""
    return [
        [sum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))]
        for i in range(len(a))
    ]


def to_tensor(rows: Rows) -> Any:
    """Stack entries `(batch,)` to matrices `(batch, rows, columns)`."""
    return ops.stack([ops.stack(row, axis=-1) for row in rows], axis=-2)


class Linear(Transform):
    """A linear map about the center of the image, in pixel space, followed by a shift.

    Args:
        name: See `Transform`.
        linear: The names of the parameters of the linear part; those of the shift follow.
        identity: Their values at the identity.
        rows: From one `(batch,)` tensor per parameter of the linear part to its matrix in pixel
            space.
        shifted: Whether there is a shift.
        dimensions: See `Transform`.
        multiply: From the linear parameters of two transformations to those of their product.
        reciprocal: From the linear parameters to those of the inverse.
    """

    def __init__(
        self,
        name: str,
        linear: Sequence[str],
        identity: Sequence[float],
        rows: Callable[..., Rows],
        *,
        shifted: bool = True,
        dimensions: int = 2,
        multiply: Callable[..., Sequence[Any]] | None = None,
        reciprocal: Callable[..., Sequence[Any]] | None = None,
    ):
        shift = "xyz"[:dimensions] if shifted else ""
        parameters = (*linear, *shift)
        kinds = dict.fromkeys(_kind(parameter) for parameter in parameters)
        super().__init__(
            name,
            parameters,
            (*identity, *(0.0 for _ in shift)),
            dimensions=dimensions,
            limits=tuple(kinds),
        )
        scaling = [parameter.startswith("scale") for parameter in linear]
        self._rows, self._linear = rows, len(linear)
        # Scales multiply and angles in the plane add.
        self._multiply = multiply or (
            lambda a, b: [
                x * y if scales else x + y for x, y, scales in zip(a, b, scaling, strict=True)
            ]
        )
        self._reciprocal = reciprocal or (
            lambda a: [1 / x if scales else -x for x, scales in zip(a, scaling, strict=True)]
        )

    def split(self, params: Any) -> tuple[list[Any], list[Any]]:
        """The parameters of the linear part and of the shift, each `(batch,)`."""
        entries = [params[:, i] for i in range(self.size)]
        shift = entries[self._linear :] or [0.0 * entries[0]] * self.dimensions
        return entries[: self._linear], shift

    def join(self, linear: Sequence[Any], shift: Sequence[Any]) -> Any:
        """The opposite of `split`."""
        shift = shift if self.size > self._linear else []
        return ops.stack([*linear, *shift], axis=-1)

    def _normalized(self, linear: list[Any], like: Any, size: Any, align_corners: bool) -> Rows:
        axes = range(self.dimensions)
        extents = grids.extents(size, align_corners) if size else (1.0,) * self.dimensions
        rows = self._rows(*linear) if linear else np.eye(self.dimensions).tolist()
        # Numbers become tensors, and one pixel of an axis as many of its units as it spans.
        return [[rows[i][j] * (extents[j] / extents[i]) + 0.0 * like for j in axes] for i in axes]

    def move(self, params: Any, points: Any, size: Any, align_corners: bool) -> Any:
        """See `Transform.move`."""
        linear, shift = self.split(params)
        rows = self._normalized(linear, ops.zeros_like(params[:, 0]), size, align_corners)
        shape = (-1,) + (1,) * (len(points.shape) - 2)
        return ops.stack(
            [
                sum(
                    (ops.reshape(entry, shape) * points[..., j] for j, entry in enumerate(row)),
                    start=0.0,
                )
                + ops.reshape(offset, shape)
                for row, offset in zip(rows, shift, strict=True)
            ],
            axis=-1,
        )

    def matrix(self, params: Any, *, size: Any = None, align_corners: bool = False) -> Any:
        """See `Transform.matrix`."""
        linear, shift = self.split(self.check(params))
        rows = self._normalized(linear, ops.zeros_like(shift[0]), size, align_corners)
        return to_tensor([[*row, offset] for row, offset in zip(rows, shift, strict=True)])

    def inverse(self, params: Any, *, size: Any = None, align_corners: bool = False) -> Any:
        """See `Transform.inverse`."""
        linear, shift = self.split(self.check(params))
        linear = list(self._reciprocal(linear))
        rows = self._normalized(linear, ops.zeros_like(shift[0]), size, align_corners)
        moved = product(rows, [[-offset] for offset in shift])
        return self.join(linear, [row[0] for row in moved])

    def compose(
        self, first: Any, second: Any, *, size: Any = None, align_corners: bool = False
    ) -> Any:
        """See `Transform.compose`."""
        (linear, shift), (linear2, shift2) = (self.split(self.check(p)) for p in (first, second))
        rows = self._normalized(linear, ops.zeros_like(shift[0]), size, align_corners)
        moved = product(rows, [[offset] for offset in shift2])
        return self.join(
            list(self._multiply(linear, linear2)),
            [row[0] + offset for row, offset in zip(moved, shift, strict=True)],
        )


class Affine(Linear):
    """All affine maps: the matrix row by row, in normalized coordinates."""

    def __init__(self, name: str, parameters: Sequence[str], dimensions: int):
        n = dimensions
        identity = np.eye(n).ravel()
        super().__init__(
            name,
            [f"m{i}" for i in range(n * n)],
            identity,
            lambda *entries: [list(entries[n * i : n * i + n]) for i in range(n)],
            dimensions=n,
            multiply=lambda a, b: _flat(product(self._rows(*a), self._rows(*b))),
            reciprocal=lambda a: _flat(invert(self._rows(*a))),
        )
        self.parameters = tuple(parameters)
        self.identity = tuple(np.eye(n, n + 1).ravel().tolist())
        self.limits = ("scale", "angle", "shear", "shift")

    def split(self, params: Any) -> tuple[list[Any], list[Any]]:
        """See `Linear.split`."""
        n = self.dimensions
        entries = [params[:, i] for i in range(self.size)]
        shift = entries[n :: n + 1]
        return [entry for i, entry in enumerate(entries) if i % (n + 1) != n], shift

    def join(self, linear: Sequence[Any], shift: Sequence[Any]) -> Any:
        """See `Linear.join`."""
        n = self.dimensions
        rows = [[*linear[n * i : n * i + n], shift[i]] for i in range(n)]
        return ops.stack(_flat(rows), axis=-1)

    def _normalized(self, linear: list[Any], like: Any, size: Any, align_corners: bool) -> Rows:
        return self._rows(*linear)

    def bound(
        self, offset: Any, bounds: Any = None, *, size: Any = None, align_corners: bool = False
    ) -> Any:
        """See `Transform.bound`: rotation times shear times scale, to first order the offsets."""
        if not bounds:
            return super().bound(offset)
        n = self.dimensions
        linear, shift = self.split(self.check(offset))
        extents = grids.extents(size, align_corners) if size else (1.0,) * n
        o = [[linear[n * i + j] * (extents[i] / extents[j]) for j in range(n)] for i in range(n)]
        one = ops.ones_like(shift[0])
        # The entries below the diagonal turn; what those above add to that shears.
        angles = [o[1][0]] if n == 2 else [o[2][1], -o[2][0], o[1][0]]
        turn = (_plane if n == 2 else _space)(*(limit(a, "angle", bounds) for a in angles))
        slant = [[one if i == j else 0.0 * one for j in range(n)] for i in range(n)]
        for i in range(n):
            for j in range(i + 1, n):
                slant[i][j] = limit(o[i][j] + o[j][i], "shear", bounds)
        scale = [
            [one + limit(o[i][i], "scale", bounds) if i == j else 0.0 * one for j in range(n)]
            for i in range(n)
        ]
        rows = product(product(turn, slant), scale)
        rows = [[rows[i][j] * (extents[j] / extents[i]) for j in range(n)] for i in range(n)]
        return self.join(_flat(rows), [limit(value, "shift", bounds) for value in shift])


class Projective(Transform):
    """All projective maps of the plane: a 3x3 matrix row by row, without its last entry, 1.

    The denominator keeps away from 0 by 1e-6, so that all points stay finite.
    """

    def __init__(self) -> None:
        super().__init__(
            "projective",
            "abcdefgh",
            (1, 0, 0, 0, 1, 0, 0, 0),
            limits=("scale", "angle", "shear", "shift", "perspective"),
        )
        self._affine = Affine("affine", "abcdef", 2)

    def rows(self, params: Any) -> Rows:
        """The entries of the 3x3 matrices."""
        entries = [params[:, i] for i in range(8)] + [ops.ones_like(params[:, 0])]
        return [entries[i : i + 3] for i in (0, 3, 6)]

    def from_rows(self, rows: Rows) -> Any:
        """Parameters of matrices given by their entries."""
        return ops.stack([x / _away_from_zero(rows[2][2]) for x in _flat(rows)[:8]], axis=-1)

    def move(self, params: Any, points: Any, size: Any, align_corners: bool) -> Any:
        """See `Transform.move`."""
        shape = (-1,) + (1,) * (len(points.shape) - 2)
        x, y = points[..., 0], points[..., 1]
        across, down, depth = (
            a * x + b * y + c
            for a, b, c in [[ops.reshape(e, shape) for e in row] for row in self.rows(params)]
        )
        return ops.stack([across, down], axis=-1) / ops.expand_dims(_away_from_zero(depth), -1)

    def matrix(self, params: Any, *, size: Any = None, align_corners: bool = False) -> Any:
        """See `Transform.matrix`."""
        return to_tensor(self.rows(self.check(params)))

    def inverse(self, params: Any, *, size: Any = None, align_corners: bool = False) -> Any:
        """See `Transform.inverse`."""
        return self.from_rows(adjugate(self.rows(self.check(params))))

    def compose(
        self, first: Any, second: Any, *, size: Any = None, align_corners: bool = False
    ) -> Any:
        """See `Transform.compose`."""
        return self.from_rows(product(*(self.rows(self.check(p)) for p in (first, second))))

    def bound(
        self, offset: Any, bounds: Any = None, *, size: Any = None, align_corners: bool = False
    ) -> Any:
        """See `Transform.bound`."""
        offset, bounds = self.check(offset), bounds or {}
        affine = self._affine.bound(offset[:, :6], bounds, size=size, align_corners=align_corners)
        return ops.concatenate([affine, limit(offset[:, 6:], "perspective", bounds)], axis=-1)


def _away_from_zero(values: Any) -> Any:
    smallest = ops.where(values < 0, -1e-6 + 0.0 * values, 1e-6 + 0.0 * values)
    return ops.where(ops.abs(values) < 1e-6, smallest, values)


def _flat(rows: Rows) -> list[Any]:
    return [entry for row in rows for entry in row]


def _plane(angle: Any) -> Rows:
    cos, sin = samplers.cos_sin(angle)
    return [[cos, -sin], [sin, cos]]


def _scaled_plane(scale: Any, angle: Any) -> Rows:
    return [[scale * entry for entry in row] for row in _plane(angle)]


def _space(x: Any, y: Any, z: Any) -> Rows:
    """Rotation about the axis `(x, y, z)` by its length in radians."""
    w, a, b, c = _quaternion(x, y, z)
    return [
        [1 - 2 * (b * b + c * c), 2 * (a * b - c * w), 2 * (a * c + b * w)],
        [2 * (a * b + c * w), 1 - 2 * (a * a + c * c), 2 * (b * c - a * w)],
        [2 * (a * c - b * w), 2 * (b * c + a * w), 1 - 2 * (a * a + b * b)],
    ]


def _quaternion(x: Any, y: Any, z: Any) -> tuple[Any, Any, Any, Any]:
    square = x * x + y * y + z * z
    small = square < 1e-8
    angle = ops.sqrt(ops.where(small, ops.ones_like(square), square))
    cos, sin = samplers.cos_sin(angle / 2)
    factor = ops.where(small, 0.5 - square / 48, sin / angle)
    return ops.where(small, 1 - square / 8, cos), factor * x, factor * y, factor * z


def _turn_twice(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """The rotation vector of two rotations after one another."""
    w, x, y, z = _quaternion(*first)
    w2, x2, y2, z2 = _quaternion(*second)
    cos = w * w2 - x * x2 - y * y2 - z * z2
    vector = [
        w * x2 + x * w2 + y * z2 - z * y2,
        w * y2 - x * z2 + y * w2 + z * x2,
        w * z2 + x * y2 - y * x2 + z * w2,
    ]
    # The same rotation by the shorter way: a quaternion and its negative are one.
    sign = ops.where(cos < 0, -ops.ones_like(cos), ops.ones_like(cos))
    cos, vector = cos * sign, [part * sign for part in vector]
    square = vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]
    small = square < 1e-8
    sin = ops.sqrt(ops.where(small, ops.ones_like(square), square))
    half = ops.cast(ops.arctan2(sin, cos), sin.dtype)
    if samplers.is_float64(sin):  # Keras rounds arctan2 to float32; one step of Newton's restores
        c, s = samplers.cos_sin(half)
        half = half + sin * c - cos * s
    factor = ops.where(small, 2 + square / 3, 2 * half / sin)
    return [factor * part for part in vector]


def _diagonal(*scales: Any) -> Rows:
    n = len(scales)
    return [[scales[i] if i == j else 0.0 for j in range(n)] for i in range(n)]


LINEAR: tuple[Transform, ...] = (
    Linear("translation", (), (), _diagonal),
    Linear("rotation", ("angle",), (0,), _plane, shifted=False),
    Linear("rigid", ("angle",), (0,), _plane),
    Linear("attention", ("scale",), (1,), lambda scale: _diagonal(scale, scale)),
    Linear("scaling", ("scale_x", "scale_y"), (1, 1), _diagonal),
    Linear("similarity", ("scale", "angle"), (1, 0), _scaled_plane),
    Affine("affine", "abcdef", 2),
    Projective(),
    Linear("translation", (), (), _diagonal, dimensions=3),
    Linear(
        "attention",
        ("scale",),
        (1,),
        lambda scale: _diagonal(scale, scale, scale),
        dimensions=3,
    ),
    Linear(
        "rigid",
        ("angle_x", "angle_y", "angle_z"),
        (0, 0, 0),
        _space,
        dimensions=3,
        multiply=_turn_twice,
        reciprocal=lambda vector: [-part for part in vector],
    ),
    Affine("affine", "abcdefghijkl", 3),
)
"""The families that are matrices, 2-D ones first, from the least to the most free."""
