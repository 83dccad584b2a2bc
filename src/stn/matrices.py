"""Transformation families that are matrices: linear maps with a shift, and the projective ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from stn import bilinear, families, filters, grids, samplers
from stn.families import Rows


def product(a: Rows, b: Rows) -> Rows:
    """Multiply matrices given by their entries.

    Example:
        >>> product([[1, 2], [3, 4]], [[0, 1], [1, 0]])
        [[2, 1], [4, 3]]
    """
    return [
        [sum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))]
        for i in range(len(a))
    ]


def to_tensor(rows: Rows) -> Any:
    """Stack entries `(batch,)` to matrices `(batch, rows, columns)`."""
    return ops.stack([ops.stack(row, axis=-1) for row in rows], axis=-2)


def combine(rows: Rows, columns: list[Any]) -> list[Any]:
    """For each row the sum of columns, each times its factor in the row.

    The sum is not a product of matrices, which accelerators round to fewer digits than a
    coordinate needs (PyTorch does not unless asked to). Its gradient to the factors is: the sums
    over all points that automatic differentiation writes instead take several times as long.

    Args:
        rows: Lists of `(batch,)` tensors, as many in each as there are columns.
        columns: Tensors `(batch, ...)` or `(1, ...)`.

    Returns:
        A tensor `(batch, ...)` for each row.
    """
    shape = columns[0].shape
    if shape[0] != 1 or None in shape[1:]:
        return [_sum(row, columns) for row in rows]
    if keras.backend.backend() == "torch":
        results = bilinear.combine_natively(rows, columns)
    else:
        flat = [ops.reshape(column, (1, -1)) for column in columns]
        combine = bilinear.differentiable(_combine, _combine_gradients)
        results = [combine(*row, *flat) for row in rows]
    return [ops.reshape(result, (-1, *shape[1:])) for result in results]


def _sum(factors: Any, columns: Any) -> Any:
    shape = (-1,) + (1,) * (len(columns[0].shape) - 1)
    parts = zip(factors, columns, strict=True)
    return sum((ops.reshape(factor, shape) * column for factor, column in parts), start=0.0)


def _combine(*tensors: Any) -> Any:
    return _sum(tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :])


def _combine_gradients(*arguments: Any, wanted: Any) -> list[Any]:
    *tensors, change = arguments
    n = len(tensors) // 2
    factors, columns = tensors[:n], tensors[n:]
    with filters.exactly(change):
        to_factors = ops.einsum("bp,kp->bk", change, ops.concatenate(columns, axis=0))
        to_columns = ops.einsum("kb,bp->kp", ops.stack(factors, axis=0), change)
    return [to_factors[:, i] for i in range(n)] + [to_columns[i : i + 1] for i in range(n)]


class Linear(families.Transform):
    """A linear map about the center of the image, in pixel space, followed by a shift.

    Args:
        name: See `Transform`.
        linear: The names of the parameters of the linear part; those of the shift follow.
        identity: Their values at the identity.
        rows: From one `(batch,)` tensor per parameter of the linear part to its matrix in pixel
            space.
        shifted: Whether there is a shift.
        dimensions: See `Transform`.
        aligned: See `Transform`.
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
        aligned: bool = False,
        multiply: Callable[..., Sequence[Any]] | None = None,
        reciprocal: Callable[..., Sequence[Any]] | None = None,
    ):
        shift = "xyz"[:dimensions] if shifted else ""
        parameters = (*linear, *shift)
        kinds = dict.fromkeys(families.kind(parameter) for parameter in parameters)
        super().__init__(
            name,
            parameters,
            (*identity, *(0.0 for _ in shift)),
            dimensions=dimensions,
            limits=tuple(kinds),
        )
        scaling = [parameter.startswith("scale") for parameter in linear]
        self._rows, self._linear = rows, len(linear)
        self.aligned = aligned
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

    def columns(
        self, params: Any, points: Any, *, size: Any = None, align_corners: bool = False
    ) -> list[Any]:
        """See `Transform.columns`."""
        params, points = self.check_points(params, points)
        return self._columns(params, points, size, align_corners)

    def _columns(self, params: Any, points: Any, size: Any, align_corners: bool) -> list[Any]:
        linear, shift = self.split(params)
        rows = self._normalized(linear, ops.zeros_like(params[:, 0]), size, align_corners)
        columns = [points[..., j] for j in range(self.dimensions)]
        columns.append(ops.ones_like(columns[0]))
        return combine([[*row, offset] for row, offset in zip(rows, shift, strict=True)], columns)

    def move(self, params: Any, points: Any, size: Any, align_corners: bool) -> Any:
        """See `Transform.move`."""
        return ops.stack(self._columns(params, points, size, align_corners), axis=-1)

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
        pair = families.alike(self.check(first), self.check(second))
        (linear, shift), (linear2, shift2) = (self.split(params) for params in pair)
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
        identity = np.eye(n).ravel().tolist()
        super().__init__(
            name,
            [f"m{i}" for i in range(n * n)],
            identity,
            lambda *entries: [list(entries[n * i : n * i + n]) for i in range(n)],
            dimensions=n,
            multiply=lambda a, b: _flat(product(self._rows(*a), self._rows(*b))),
            reciprocal=lambda a: _flat(families.invert(self._rows(*a))),
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
        turn = (_plane if n == 2 else _space)(*(families.limit(a, "angle", bounds) for a in angles))
        slant = [[one if i == j else 0.0 * one for j in range(n)] for i in range(n)]
        for i in range(n):
            for j in range(i + 1, n):
                slant[i][j] = families.limit(o[i][j] + o[j][i], "shear", bounds)
        scale = [
            [
                one + families.limit(o[i][i], "scale", bounds) if i == j else 0.0 * one
                for j in range(n)
            ]
            for i in range(n)
        ]
        rows = product(product(turn, slant), scale)
        rows = [[rows[i][j] * (extents[j] / extents[i]) for j in range(n)] for i in range(n)]
        return self.join(_flat(rows), [families.limit(value, "shift", bounds) for value in shift])


class Projective(families.Transform):
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

    def columns(
        self, params: Any, points: Any, *, size: Any = None, align_corners: bool = False
    ) -> list[Any]:
        """See `Transform.columns`."""
        params, points = self.check_points(params, points)
        return _project(self.rows(params), points)

    def move(self, params: Any, points: Any, size: Any, align_corners: bool) -> Any:
        """See `Transform.move`."""
        return ops.stack(self.columns(params, points), axis=-1)

    def matrix(self, params: Any, *, size: Any = None, align_corners: bool = False) -> Any:
        """See `Transform.matrix`."""
        return to_tensor(self.rows(self.check(params)))

    def inverse(self, params: Any, *, size: Any = None, align_corners: bool = False) -> Any:
        """See `Transform.inverse`; NaN also where the last entry of the inverse would be 0."""
        return self.from_rows(self._back(self.check(params)))

    def move_back(
        self, params: Any, points: Any, *, size: Any = None, align_corners: bool = False
    ) -> Any:
        """See `Transform.move_back`; without parameters of an inverse, which it need not have."""
        params, points = self.check_points(params, points)
        return ops.stack(_project(self._back(params), points), axis=-1)

    def _back(self, params: Any) -> Rows:
        """Matrices back, up to a factor; NaN where there are none."""
        rows = self.rows(params)
        back = families.adjugate(rows)
        determinant = sum(rows[0][k] * back[k][0] for k in range(3))
        largest = functools.reduce(ops.maximum, [ops.abs(entry) for entry in back[2]])
        factor = ops.where(determinant == 0, np.nan, 1.0 / largest)
        return [[entry * factor for entry in row] for row in back]

    def compose(
        self, first: Any, second: Any, *, size: Any = None, align_corners: bool = False
    ) -> Any:
        """See `Transform.compose`."""
        pair = families.alike(self.check(first), self.check(second))
        return self.from_rows(product(*(self.rows(params) for params in pair)))

    def bound(
        self, offset: Any, bounds: Any = None, *, size: Any = None, align_corners: bool = False
    ) -> Any:
        """See `Transform.bound`."""
        offset, bounds = self.check(offset), bounds or {}
        affine = self._affine.bound(offset[:, :6], bounds, size=size, align_corners=align_corners)
        return ops.concatenate(
            [affine, families.limit(offset[:, 6:], "perspective", bounds)], axis=-1
        )


def _project(rows: Rows, points: Any) -> list[Any]:
    """Where 3x3 matrices take points: one `(batch, ...)` tensor per coordinate."""
    columns = [points[..., 0], points[..., 1], ops.ones_like(points[..., 0])]
    across, down, depth = combine(rows, columns)
    nearness = 1.0 / _away_from_zero(depth)
    return [across * nearness, down * nearness]


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


MATRICES: tuple[families.Transform, ...] = (
    Linear("translation", (), (), _diagonal, aligned=True),
    Linear("rotation", ("angle",), (0,), _plane, shifted=False),
    Linear("rigid", ("angle",), (0,), _plane),
    Linear("attention", ("scale",), (1,), lambda scale: _diagonal(scale, scale), aligned=True),
    Linear("scaling", ("scale_x", "scale_y"), (1, 1), _diagonal, aligned=True),
    Linear("similarity", ("scale", "angle"), (1, 0), _scaled_plane),
    Affine("affine", "abcdef", 2),
    Projective(),
    Linear("translation", (), (), _diagonal, dimensions=3, aligned=True),
    Linear(
        "attention",
        ("scale",),
        (1,),
        lambda scale: _diagonal(scale, scale, scale),
        dimensions=3,
        aligned=True,
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
