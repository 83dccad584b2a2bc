"""Transformation families that bend: displacements given at control points, smooth in between.

Their parameters are displacements in normalized units (2 is the whole image), point by point, row
by row from the top left, `(x, y)` or `(x, y, z)` each. The identity is all zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from stn import families, filters, grids, samplers


class Deformation(families.Transform):
    """A family whose parameters are displacements, or velocities, at a number of points."""

    def __init__(self, name: str, count: int, dimensions: int = 2):
        parameters = [f"{axis}{i}" for i in range(count) for axis in "xyz"[:dimensions]]
        super().__init__(
            name,
            parameters,
            [0.0] * len(parameters),
            dimensions=dimensions,
            limits=("displacement",),
        )

    def bound(
        self, offset: Any, bounds: Any = None, *, size: Any = None, align_corners: bool = False
    ) -> Any:
        """See `Transform.bound`."""
        return families.limit(self.check(offset), "displacement", bounds or {})


@keras.saving.register_keras_serializable(package="stn")
class ThinPlateSpline(Deformation):
    """The smoothest map that moves control points as told (Bookstein 1989).

    Of all maps that do, it bends least, as a thin plate of metal would. Its parameters are the
    displacements of the control points. The linear system is solved once, at construction.

    Args:
        points: How many control points along each side of the image: they stand on a regular grid
            from edge to edge, -1 to 1. Or the points themselves, `(n, 2)` normalized `(x, y)`, at
            least three and not all on a line.
        regularization: 0 interpolates the displacements; larger values, in the units of the
            kernel `r^2 log r`, only approach them and bend less.

    Raises:
        ValueError: If the points do not determine a spline, or regularization is below 0.

    Example:
        >>> import numpy as np
        >>> spline = ThinPlateSpline(2)
        >>> lifted = spline(np.array([[0, -1, 0, 0, 0, 0, 0, 0.0]]), np.array([[-1.0, -1.0]]))
        >>> np.round(np.asarray(lifted), 5).tolist()
        [[-1.0, -2.0]]
    """

    def __init__(self, points: int | Any = 4, *, regularization: float = 0.0):
        self.points = points
        self.regularization = float(regularization)
        if isinstance(points, int | np.integer):
            n = max(int(points), 1)
            points = grids.regular((n, n), align_corners=True).reshape(-1, 2)
        # Copies, no views, here and below: the compiler of PyTorch cannot take those in.
        self.control = np.array(points, dtype="float64")
        if self.control.ndim != 2 or self.control.shape[-1] != 2 or not self.regularization >= 0:
            raise ValueError(
                "Expected a number of control points a side, or points of shape (n, 2), and "
                f"regularization of at least 0. Received: points={points!r}, "
                f"regularization={regularization!r}"
            )
        n = len(self.control)
        system = np.zeros((n + 3, n + 3))
        system[:n, :n] = self._kernel(self.control)[:, :n] + self.regularization * np.eye(n)
        system[:n, n:] = np.concatenate([np.ones((n, 1)), self.control], axis=1)
        system[n:, :n] = system[:n, n:].T
        if n < 3 or not np.isfinite(system).all() or np.linalg.cond(system) > 1e12:
            raise ValueError(
                "Expected at least three control points, different and not all on a line. "
                f"Received: points={points!r}"
            )
        self._weights = np.linalg.inv(system)[:, :n].copy()
        super().__init__("tps", n)

    def _kernel(self, points: Any) -> Any:
        """`r^2 log r` to every control point, then 1, x, y: `(..., n + 3)`."""
        fixed = isinstance(points, np.ndarray)
        xp = np if fixed else ops
        control = self.control if fixed else ops.convert_to_tensor(self.control, _dtype(points))
        x, y = points[..., 0:1], points[..., 1:2]
        square = xp.square(x - control[:, 0]) + xp.square(y - control[:, 1])
        log = xp.log(xp.where(square > 1e-30, square, xp.ones_like(square)))
        return xp.concatenate([0.5 * square * log, xp.ones_like(x), x, y], axis=-1)

    def __call__(self, params: Any, points: Any, **options: Any) -> Any:
        """See `Transform.__call__`."""
        if not isinstance(points, np.ndarray) or points.shape[0] != 1:
            return super().__call__(params, points, **options)
        # Fixed points: all but the product with the parameters is done here, in float64.
        params, tensor = self.check_points(params, points)
        return self._moved(params, tensor, self._kernel(points.astype("float64")) @ self._weights)

    def move(self, params: Any, points: Any, size: Any, align_corners: bool) -> Any:
        """See `Transform.move`."""
        weights = ops.convert_to_tensor(self._weights, _dtype(points))
        with filters.exactly(weights):
            influence = ops.einsum("...k,kn->...n", self._kernel(points), weights)
        return self._moved(params, points, influence)

    def _moved(self, params: Any, points: Any, influence: Any) -> Any:
        """Add to points the displacements, weighted by each control point's influence on them."""
        displacements = ops.reshape(params, (-1, len(self.control), 2))
        influence = ops.convert_to_tensor(influence, _dtype(params))
        shape = influence.shape
        flat = ops.reshape(influence, (-1, math.prod(shape[1:-1]), shape[-1]))
        with filters.exactly(flat):
            if shape[0] == 1:
                moved = ops.einsum("pn,bnd->bpd", flat[0], displacements)
            elif displacements.shape[0] == 1:
                moved = ops.einsum("bpn,nd->bpd", flat, displacements[0])
            else:
                moved = ops.einsum("bpn,bnd->bpd", flat, displacements)
        return points + ops.reshape(moved, (-1, *shape[1:-1], 2))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        points = self.points
        return {
            "points": int(points)
            if isinstance(points, int | np.integer)
            else self.control.tolist(),
            "regularization": self.regularization,
        }


@keras.saving.register_keras_serializable(package="stn")
class Flow(Deformation):
    """Displacements on a lattice, read in between by bilinear sampling.

    The lattice is a small picture of displacements, enlarged to the image as any picture is (its
    edge goes on outside). With as many points as the image has pixels, every pixel has its own.

    Args:
        lattice: Points along each axis, `(height, width)` or `(depth, height, width)`, or one
            number for all.
        dimensions: 2 for images, 3 for volumes; `len(lattice)` if that says.

    Raises:
        ValueError: If the lattice is not 2-D or 3-D, or smaller than 1.

    Example:
        >>> import numpy as np
        >>> move_all = np.array([[0.5, 0.0]])
        >>> np.asarray(Flow(1)(move_all, np.zeros((1, 2)))).tolist()
        [[0.5, 0.0]]
    """

    def __init__(self, lattice: int | Iterable[int] = 7, *, dimensions: int = 2):
        self.lattice = _lattice(lattice, dimensions)
        super().__init__("flow", math.prod(self.lattice), len(self.lattice))

    def move(self, params: Any, points: Any, size: Any, align_corners: bool) -> Any:
        """See `Transform.move`."""
        return points + _read_lattice(params, points, self.lattice, align_corners)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        return {"lattice": list(self.lattice)}


@keras.saving.register_keras_serializable(package="stn")
class Diffeomorphic(Deformation):
    """A flow along velocities that do not change in time: invertible, and never folds.

    The parameters are velocities on a lattice, read in between as by `Flow`. Every point follows
    them for one unit of time (a stationary velocity field, Arsigny et al. 2006); the negative
    velocities lead back. The points are followed one by one, by the classic Runge-Kutta method:
    scaling and squaring, which composes the map with itself on a grid, was tried and left errors
    of up to some pixels, and folds, where this leaves some hundredths.

    Args:
        lattice: Points along each axis, `(height, width)` or `(depth, height, width)`, or one
            number for all.
        steps: Steps of the integration, four reads of the velocities each. The more a step moves
            a point in units of the lattice, the more are needed: four are enough for about one.
        dimensions: 2 for images, 3 for volumes; `len(lattice)` if that says.

    Raises:
        ValueError: If the lattice is not 2-D or 3-D, or smaller than 1, or steps below 1.

    Example:
        >>> import numpy as np
        >>> spread = Diffeomorphic(3)
        >>> velocity = 0.1 * np.random.default_rng(0).normal(size=(1, 18))
        >>> there = spread(velocity, np.zeros((1, 2)))
        >>> bool(np.abs(np.asarray(spread(-velocity, there))).max() < 1e-4)
        True
    """

    def __init__(self, lattice: int | Iterable[int] = 5, *, steps: int = 4, dimensions: int = 2):
        self.lattice, self.steps = _lattice(lattice, dimensions), steps
        if not (isinstance(steps, int | np.integer) and steps >= 1):
            raise ValueError(f"Expected steps to be at least 1. Received: steps={steps!r}")
        super().__init__("diffeomorphic", math.prod(self.lattice), len(self.lattice))

    def move(self, params: Any, points: Any, size: Any, align_corners: bool) -> Any:
        """See `Transform.move`."""
        follow = _follow
        if keras.backend.backend() == "jax":
            import jax

            # Outside of a compiled step, JAX would otherwise compile a loop at every call.
            follow = jax.jit(_follow, static_argnums=(2, 3, 4))
        return follow(params, points, self.lattice, self.steps, align_corners)

    def inverse(self, params: Any, *, size: Any = None, align_corners: bool = False) -> Any:
        """See `Transform.inverse`: the way back along the same velocities."""
        return -self.check(params)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        return {"lattice": list(self.lattice), "steps": int(self.steps)}


_RUNGE_KUTTA = ((1 / 2, 1 / 6), (1 / 2, 1 / 3), (1.0, 1 / 3), (0.0, 1 / 6))
"""Of each stage of a step: how far the next one looks ahead, and the share of the velocity."""


def _follow(
    params: Any, points: Any, lattice: tuple[int, ...], steps: int, align_corners: bool
) -> Any:
    """Follow velocities on a lattice for one unit of time."""
    velocities, kind = params / steps, _dtype(points)
    points = _for_each(points, params)  # a loop does not change shapes

    def step(start: Any, _: Any) -> Any:
        def stage(state: Any, coefficients: Any) -> Any:
            at, end = state
            reach, share = coefficients
            velocity = _read_lattice(velocities, at, lattice, align_corners)
            return (start + reach * velocity, end + share * velocity), None

        return _loop(stage, (start, start), _RUNGE_KUTTA, kind)[1], None

    return _loop(step, points, [[]] * steps, kind)


def _loop(body: Any, state: Any, rows: Any, kind: str) -> Any:
    """What `keras.ops.scan` makes of a state and the rows of a table of numbers."""
    if keras.backend.backend() == "jax":
        # Written out, XLA would compute every read anew in each of the reads that follow it: the
        # result would take 50 times as long. TensorFlow has slow loops, and is not compiled as one.
        return ops.scan(body, state, ops.convert_to_tensor(np.asarray(rows), kind))[0]
    for row in rows:
        state, _ = body(state, row)
    return state


def _dtype(tensor: Any) -> str:
    return keras.backend.standardize_dtype(tensor.dtype)


def _lattice(lattice: int | Iterable[int], dimensions: int) -> tuple[int, ...]:
    size = tuple(lattice) if isinstance(lattice, Iterable) else (lattice,) * dimensions
    if len(size) not in (2, 3) or not all(isinstance(n, int | np.integer) and n >= 1 for n in size):
        raise ValueError(
            "Expected lattice to be a number of points along each of 2 or 3 axes, at least 1. "
            f"Received: lattice={lattice!r}, dimensions={dimensions!r}"
        )
    return tuple(int(n) for n in size)


def _read_lattice(params: Any, points: Any, lattice: tuple[int, ...], align_corners: bool) -> Any:
    """Read vectors given on a lattice at points, one batch of each or one for all."""
    nodes = ops.reshape(params, (-1, *lattice, len(lattice)))
    points = _for_each(points, params)
    nodes = _for_each(nodes, points)
    return samplers.sample(
        nodes, points, padding="border", align_corners=align_corners, data_format="channels_last"
    )


def _for_each(tensor: Any, batch: Any) -> Any:
    """A tensor, repeated for each row of another one if it has one row for all."""
    if tensor.shape[0] != 1 or batch.shape[0] == 1:
        return tensor
    # Broadcast against a number of each row: how many there are may be unknown.
    first = ops.reshape(batch, (-1, math.prod(batch.shape[1:])))[:, 0]
    return tensor + 0.0 * ops.reshape(first, (-1,) + (1,) * (len(tensor.shape) - 1))
