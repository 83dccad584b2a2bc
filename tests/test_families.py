"""The families: how they contain each other, their inverses and bounds, and the ones that bend.

Tests marked `shows` fill the table in docs/families.md; see conftest.py.
"""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import stn
from conftest import over
from stn import grids
from stn.families import squash
from stn.transforms import FAMILIES

families = over(FAMILIES.values())
invertible = over([family for family in FAMILIES.values() if family.invertible])
matrices = over([family for family in FAMILIES.values() if family.composable])
conventions = pytest.mark.parametrize("align_corners", [False, True])

SIZES = {2: (5, 4), 3: (2, 3, 5)}  # no two axes alike
BENDS = ("tps", "flow", "diffeomorphic")


def near_identity(family, batch=4, seed=0, scale=1.0):
    """Random parameters; at scale 1 nothing folds, and no denominator vanishes."""
    noise = np.random.default_rng(seed).normal(size=(batch, family.size))
    spread = 0.04 if family.name in BENDS else 0.15
    return (np.array(family.identity) + scale * spread * noise).astype("float32")


def draw_points(dimensions, batch=4):
    rng = np.random.default_rng(1)
    return rng.uniform(-1, 1, (batch, 3, 4, dimensions)).astype("float32")


def both_ways(dimensions):
    """Options of a call: square, and not, in each corner convention."""
    for size, align_corners in itertools.product((None, SIZES[dimensions]), (False, True)):
        yield {"size": size, "align_corners": align_corners}


def numbers(tensor):
    return ops.convert_to_numpy(tensor)


def call(family, params, points, **options):
    return numbers(family(params, points, **options))


# --- parameters and points -----------------------------------------------------------------------


@families
def test_identity_parameters_leave_points_alone(family):
    points = 2 * draw_points(family.dimensions)
    params = np.array([family.identity] * 4, "float32")
    for options in both_ways(family.dimensions):
        np.testing.assert_array_equal(call(family, params, points, **options), points)


@families
def test_one_row_serves_a_whole_batch(family):
    params, points = near_identity(family), draw_points(family.dimensions)
    for method in (family, family.move_back):
        expected = numbers(method(params[[0] * 4], points))
        np.testing.assert_allclose(numbers(method(params[:1], points)), expected, atol=1e-5)
        expected = numbers(method(params, points[[0] * 4]))
        np.testing.assert_allclose(numbers(method(params, points[:1])), expected, atol=1e-5)


@families
def test_float64_stays(family, float64):
    params, points = near_identity(family), draw_points(family.dimensions)
    exact, exact_points = params.astype("float64"), points.astype("float64")
    options = {"size": SIZES[family.dimensions]}
    expected = call(family, exact, exact_points, **options)
    assert expected.dtype == np.float64
    for p, x in ((params, exact_points), (exact, points)):
        found = call(family, p, x, **options)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    back = numbers(family.move_back(params, expected, **options))
    assert back.dtype == np.float64
    tolerance = 1e-5 if family.name == "diffeomorphic" else 1e-9
    np.testing.assert_allclose(back, exact_points, rtol=0, atol=tolerance)


@over([FAMILIES[key] for key in [("rotation", 2), ("similarity", 2), ("rigid", 3)]])
def test_rotations_have_a_gradient_at_the_identity(family, gradient):
    points = draw_points(family.dimensions).astype("float64")
    weights = ops.convert_to_tensor(np.random.default_rng(0).normal(size=points.shape))
    bounds = family.check_bounds({"angle": 0.5})

    def total(offset):
        return ops.sum(weights * family(family.bound(offset, bounds), points))

    slope = gradient(total, np.zeros((4, family.size)))
    expected = gradient(total, np.full((4, family.size), 1e-6))
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(slope).min() > 1e-3


@matrices
def test_matrix_agrees_with_the_call(family):
    n = family.dimensions
    params, points = near_identity(family, scale=1.5), draw_points(n)
    homogeneous = np.concatenate([points, np.ones((4, 3, 4, 1))], axis=-1)
    for options in both_ways(n):
        matrix = numbers(family.matrix(params, **options)).astype("float64")
        assert matrix.shape == ((4, 3, 3) if family.name == "projective" else (4, n, n + 1))
        expected = np.einsum("bij,bhwj->bhwi", matrix, homogeneous)
        if family.name == "projective":
            expected = expected[..., :2] / expected[..., 2:]
        found = call(family, params, points, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# --- how they contain each other -----------------------------------------------------------------


def turned(extents, *vector):
    """A rotation of the pixels as a matrix in normalized coordinates, by Rodrigues' formula."""
    angle = np.linalg.norm(vector)
    x, y, z = np.array((0, 0, *vector)[-3:]) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    n = len(extents)
    return matrix[:n, :n] * np.array(extents) / np.array(extents)[:, None]


def shifted(matrix, *shift):
    return np.concatenate([matrix, np.reshape(shift, (-1, 1))], axis=1).ravel()


def displaced(family, align_corners, row):
    """What an affine map does to the control points of a family, as parameters of that."""
    nodes = getattr(family, "control", None)
    if nodes is None:
        nodes = grids.regular(family.lattice, align_corners).reshape(-1, family.dimensions)
    matrix = np.reshape(row, (family.dimensions, -1))
    return (nodes @ matrix[:, :-1].T + matrix[:, -1] - nodes).ravel()


TPS, FLOW, FLOW_3D = FAMILIES["tps", 2], FAMILIES["flow", 2], FAMILIES["flow", 3]
# The special one, the general one, and from extents, corner convention and the parameters of the
# one to the parameters of the other.
NESTED = {
    2: [
        ("translation", "rigid", lambda e, c, x, y: (0, x, y)),
        ("translation", "attention", lambda e, c, x, y: (1, x, y)),
        ("translation", "flow", lambda e, c, x, y: (x, y) * 49),
        ("translation", "diffeomorphic", lambda e, c, x, y: (x, y) * 25),
        ("rotation", "rigid", lambda e, c, angle: (angle, 0, 0)),
        ("rigid", "similarity", lambda e, c, angle, x, y: (1, angle, x, y)),
        ("attention", "similarity", lambda e, c, scale, x, y: (scale, 0, x, y)),
        ("attention", "scaling", lambda e, c, scale, x, y: (scale, scale, x, y)),
        ("scaling", "affine", lambda e, c, right, down, x, y: (right, 0, x, 0, down, y)),
        ("similarity", "affine", lambda e, c, s, a, x, y: shifted(s * turned(e, a), x, y)),
        ("affine", "projective", lambda e, c, *row: (*row, 0, 0)),
        ("affine", "tps", lambda e, c, *row: displaced(TPS, c, row)),
        ("affine", "flow", lambda e, c, *row: displaced(FLOW, c, row)),
    ],
    3: [
        ("translation", "attention", lambda e, c, x, y, z: (1, x, y, z)),
        ("translation", "rigid", lambda e, c, x, y, z: (0, 0, 0, x, y, z)),
        ("translation", "diffeomorphic", lambda e, c, x, y, z: (x, y, z) * 64),
        ("attention", "affine", lambda e, c, scale, *shift: shifted(scale * np.eye(3), *shift)),
        ("rigid", "affine", lambda e, c, *row: shifted(turned(e, *row[:3]), *row[3:])),
        ("affine", "flow", lambda e, c, *row: displaced(FLOW_3D, c, row)),
    ],
}


@pytest.mark.shows("nested")
@families
def test_special_families_are_cases_of_general_ones(family):
    n = family.dimensions
    points = 0.7 * draw_points(n)  # between the nodes of all lattices
    cases = [case for case in NESTED[n] if family.name in case]
    assert cases
    for special, general, embed in cases:
        params = near_identity(FAMILIES[special, n], scale=2)
        for options in both_ways(n):
            size, align_corners = options["size"], options["align_corners"]
            extents = grids.extents(size, align_corners) if size else (1,) * n
            rows = [embed(extents, align_corners, *row.tolist()) for row in params]
            expected = call(FAMILIES[special, n], params, points, **options)
            found = call(FAMILIES[general, n], np.array(rows, "float32"), points, **options)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=str(special))


# --- the way back, and one after the other -------------------------------------------------------


@pytest.mark.shows("inverse")
@invertible
def test_inverse_undoes(family):
    params, points = near_identity(family), draw_points(family.dimensions)
    for options in both_ways(family.dimensions):
        inverse = numbers(family.inverse(params, **options))
        assert inverse.shape == params.shape
        for first, second in ((params, inverse), (inverse, params)):
            there = call(family, first, points, **options)
            assert np.abs(there - points).max() > 0.02
            back = call(family, second, there, **options)
            np.testing.assert_allclose(back, points, rtol=0, atol=1e-4)
        again = numbers(family.inverse(inverse, **options))
        np.testing.assert_allclose(again, params, rtol=0, atol=1e-5)


@invertible
@conventions
def test_inverse_restores_the_image(family, align_corners):
    n, options = family.dimensions, {"align_corners": align_corners, "data_format": "channels_last"}
    size = {2: (24, 32), 3: (12, 16, 20)}[n]
    grid = grids.regular(size, align_corners)
    waves = np.prod(np.sin(grid * (0.6, 0.7, 0.8)[:n] + 0.8), axis=-1)
    images = waves[None, ..., None].astype("float32")
    params = near_identity(family, 1, seed=2)
    inverse = family.inverse(params, size=size, align_corners=align_corners)
    warped = stn.warp(images, params, family, padding="border", **options)
    found = numbers(stn.warp(warped, inverse, family, padding="border", **options))
    inside = (np.abs(grid) < 0.5).all(axis=-1)
    change, rest = (np.abs(x - images)[0, inside].max() for x in (numbers(warped), found))
    assert change > 0.01
    assert rest < 0.3 * change


def test_which_families_have_closed_forms():
    bent = {key for key, family in FAMILIES.items() if family.name in BENDS}
    assert {key for key, family in FAMILIES.items() if not family.composable} == bent
    newton = {("tps", 2), ("flow", 2), ("flow", 3)}
    assert {key for key, family in FAMILIES.items() if not family.invertible} == newton
    for key in bent:
        family, params = FAMILIES[key], near_identity(FAMILIES[key])
        match = rf"(?s)^Expected a transform that has .*Received: '{key[0]}'"
        with pytest.raises(ValueError, match=match):
            family.compose(params, params)
        with pytest.raises(ValueError, match=match):
            family.matrix(params)
        if key in newton:
            with pytest.raises(ValueError, match=match):
                family.inverse(params)


@pytest.mark.shows("composition")
@matrices
def test_compose_is_one_after_the_other(family):
    points = draw_points(family.dimensions)
    first, second = near_identity(family, scale=1.5), near_identity(family, seed=5)
    for options in both_ways(family.dimensions):
        both = numbers(family.compose(first, second, **options))
        assert both.shape == first.shape
        found = call(family, both, points, **options)
        expected = call(family, first, call(family, second, points, **options), **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        alone = family.compose(first, np.array([family.identity] * 4), **options)
        np.testing.assert_allclose(numbers(alone), first, rtol=0, atol=1e-6)
        back = family.compose(first, family.inverse(first, **options), **options)
        np.testing.assert_allclose(numbers(back), [family.identity] * 4, rtol=0, atol=1e-4)


def test_rotations_in_space_compose_over_half_a_turn():
    family, axis = FAMILIES["rigid", 3], np.array([2, -1, 2]) / 3
    for turns in ((2.5, 2.5), (3.0, 0.2), (-2.0, -2.0), (3.0, -3.0), (1e-5, 2e-5)):
        first, second = (np.array([[*(turn * axis), 0, 0, 0]], "float32") for turn in turns)
        both = numbers(family.compose(first, second))
        total = (sum(turns) + np.pi) % (2 * np.pi) - np.pi  # the shorter way
        np.testing.assert_allclose(both, [[*(total * axis), 0, 0, 0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["attention", "scaling", "similarity", "affine"])
def test_a_scale_of_zero_has_no_inverse(name):
    family = stn.TRANSFORMS[name]
    params = np.zeros((1, family.size), "float32")
    assert not np.isfinite(numbers(family.inverse(params))).all()
    assert not np.isfinite(numbers(family.move_back(params, np.ones((1, 5, 2))))).any()


def test_a_singular_projective_map_has_no_inverse():
    family = stn.TRANSFORMS["projective"]
    flat = np.array([[0, 0, 0.1, 0, 0, 0.1, 0, 0]], "float32")
    assert np.isnan(numbers(family.inverse(flat))).all()
    assert np.isnan(numbers(family.move_back(flat, draw_points(2)))).all()


def test_a_projective_map_without_parameters_of_an_inverse_has_a_way_back():
    family = stn.TRANSFORMS["projective"]
    params = np.array([[0, 0, 1, 0, 1, 0, 1, 0]])  # the last entry of its inverse is 0
    points = np.array([[[0.5, 0.25], [-0.3, 0.7]]])
    back = numbers(family.move_back(params, call(family, params, points)))
    np.testing.assert_allclose(back, points, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bounds", [[1], "scale", 0.5])
def test_bounds_are_a_dictionary(bounds):
    with pytest.raises(ValueError, match=r"Expected bounds to be a dictionary.*Received: bounds="):
        stn.TRANSFORMS["affine"].check_bounds(bounds)


@pytest.mark.shows("points")
@families
def test_points_go_there_and_back(family):
    params, points = near_identity(family), draw_points(family.dimensions)
    for options in ({"align_corners": True}, {"size": SIZES[family.dimensions]}):
        there = call(family, params, points, **options)
        assert np.abs(there - points).max() > 0.02
        back = numbers(family.move_back(params, there, **options))
        np.testing.assert_allclose(back, points, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["tps", "flow"])
def test_the_way_back_is_found_from_afar(name):
    family, points = stn.TRANSFORMS[name], draw_points(2)
    params = np.resize([1.7, -1.3], family.size) + near_identity(family)
    there = call(family, params.astype("float32"), points)
    back = numbers(family.move_back(params.astype("float32"), there))
    np.testing.assert_allclose(back, points, rtol=0, atol=1e-4)


class Constant(stn.Transform):
    """All points go to one: there is no way back."""

    def __init__(self):
        super().__init__("constant", ["x", "y"], [0, 0])

    def move(self, params, points, size, align_corners):
        return 0.0 * points + ops.reshape(params, (-1, 1, 1, 2))


def test_a_point_that_cannot_be_found_is_nan():
    found = numbers(Constant().move_back(np.zeros((1, 2)), draw_points(2)))
    np.testing.assert_array_equal(found, np.nan)


@pytest.mark.parametrize("name", ["tps", "flow"])
def test_where_it_folds_the_way_back_is_right_or_nan(name):
    family = stn.TRANSFORMS[name]
    params, target = near_identity(family, scale=10), draw_points(2)
    found = numbers(family.move_back(params, target))
    missed = np.isnan(found).any(axis=-1)
    assert 0 < missed.mean() < 1
    assert np.isnan(found[missed]).all()
    again = call(family, params, np.nan_to_num(found))
    assert np.abs(again - target).sum(axis=-1)[~missed].max() < 1.1e-3


# --- projective ----------------------------------------------------------------------------------


def test_projective_stays_finite_where_the_denominator_vanishes(gradient):
    family = stn.TRANSFORMS["projective"]
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, 9)] * 2), axis=-1)[None]
    params = np.array(
        [
            [1, 0, 0, 0, 1, 0, -1, 0],  # vanishes along x = 1
            [1, 0, 0, 0, 1, 0, 2, 2],
            [1, 0, 0, 0, 1, 0, 4, -4],
            [1, 0, -1, 1, 0, -1, -1, 0],  # 0 / 0 along x = 1
        ]
    )
    denominator = 1 + points @ params[:, 6:].T
    assert (denominator == 0).any(axis=(0, 1, 2)).all()
    found = call(family, params.astype("float32"), points.astype("float32"))
    assert np.isfinite(found).all()
    assert np.abs(found[:3]).max() > 1e5

    def of_points(values):
        return ops.sum(ops.tanh(family(values, points)))

    def of_images(values):
        images = np.random.default_rng(0).normal(size=(4, 9, 9, 1))
        options = {"padding": "reflection", "align_corners": True, "data_format": "channels_last"}
        return ops.sum(stn.warp(images, values, family, **options))

    for function in (of_points, of_images):
        assert np.isfinite(gradient(function, params.astype("float64"))).all()


# --- thin-plate splines --------------------------------------------------------------------------


@pytest.mark.parametrize("points", [2, 4, "given"])
def test_spline_takes_control_points_where_told(points):
    if points == "given":
        points = np.random.default_rng(3).uniform(-1, 1, (7, 2))
    family = stn.ThinPlateSpline(points)
    displacements = np.random.default_rng(0).normal(0, 0.3, (4, family.size)).astype("float32")
    expected = family.control + displacements.reshape(4, -1, 2)
    together = call(family, displacements, family.control[None])
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-5)
    each = call(family, displacements, np.stack([family.control] * 4))
    np.testing.assert_allclose(each, expected, rtol=0, atol=1e-5)


def test_regularization_smooths():
    displacements = np.random.default_rng(0).normal(0, 0.3, (1, 32))
    grid = grids.regular((25, 25), True)[None]
    bends, misses = [], []
    for regularization in (0, 0.1, 1, 10, 1e6):
        family = stn.ThinPlateSpline(4, regularization=regularization)
        moved = call(family, displacements, grid)[0]
        bends.append(sum(np.sum(np.diff(moved, 2, axis=axis) ** 2) for axis in (0, 1)))
        at = call(family, displacements, family.control[None])[0] - family.control
        misses.append(np.abs(at - displacements.reshape(-1, 2)).max())
    assert (np.diff(bends) < 0).all()
    assert (np.diff(misses) > 0).all()
    assert misses[0] < 1e-5
    # In the end only the affine map is left that fits best.
    system = np.concatenate([np.ones((16, 1)), family.control], axis=1)
    fit = system @ np.linalg.lstsq(system, displacements.reshape(-1, 2), rcond=None)[0]
    np.testing.assert_allclose(at, fit, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "points",
    [
        1,
        0,
        -2,
        [(0, 0), (1, 1)],
        [(0, 0), (0.5, 0.5), (1, 1), (-1, -1)],  # on a line
        [(0, 0), (0, 0), (1, 0), (0, 1)],  # twice the same
        [(0, 0), (1, 0), (0, np.nan)],
        [(0, 0, 0), (1, 0, 0), (0, 1, 0)],
        [0, 1, 2],
    ],
)
def test_points_that_determine_no_spline(points):
    with pytest.raises(ValueError, match=r"(?s)^Expected .*points.*Received: points="):
        stn.ThinPlateSpline(points)


@pytest.mark.parametrize("regularization", [-0.1, float("nan")])
def test_regularization_is_checked(regularization):
    with pytest.raises(ValueError, match=r"(?s)^Expected .*Received: .*regularization="):
        stn.ThinPlateSpline(4, regularization=regularization)


@pytest.mark.parametrize("name", BENDS)
def test_half_precision_gives_no_nan(name):
    images = ops.cast(np.random.default_rng(0).uniform(0, 1, (4, 5, 4, 2)), "float16")
    params = ops.cast(near_identity(stn.TRANSFORMS[name], scale=10), "float16")
    found = stn.warp(images, params, name, data_format="channels_last")
    assert keras.backend.standardize_dtype(found.dtype) == "float16"
    assert np.isfinite(numbers(ops.cast(found, "float32"))).all()


# --- flows ---------------------------------------------------------------------------------------


@conventions
@pytest.mark.parametrize("size", [(5, 4), (1, 6), (2, 3, 5)])
def test_flow_with_a_node_for_each_pixel(size, align_corners):
    family = stn.Flow(size)
    params = np.random.default_rng(0).normal(0, 0.5, (4, family.size)).astype("float32")
    grid = grids.regular(size, align_corners)[None].astype("float32")
    moved = call(family, params, grid, size=size, align_corners=align_corners)
    expected = grid + params.reshape(4, *size, len(size))
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-5)


def test_flow_goes_on_outside_its_lattice():
    moved = call(stn.Flow((1, 2)), [[0.1, 0, 0.3, 0.2]], [[(-5.0, 9.0), (0, 0), (5, -9)]])
    np.testing.assert_allclose(moved, [[(-4.9, 9), (0.2, 0.1), (5.3, -8.8)]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("lattice", [0, -1, 2.5, "ab", (3,), (2, 3, 4, 5), (3, 0), None, (None, 3)])
def test_lattice_is_checked(lattice):
    for kind in (stn.Flow, stn.Diffeomorphic):
        with pytest.raises(ValueError, match=r"(?s)^Expected lattice .*Received: lattice="):
            kind(lattice)


@pytest.mark.parametrize("steps", [0, -1, 2.5, None])
def test_steps_are_checked(steps):
    with pytest.raises(ValueError, match=r"(?s)^Expected steps .*Received: steps="):
        stn.Diffeomorphic(steps=steps)


@pytest.mark.parametrize("std", [0.1, 0.2])
def test_diffeomorphic_leads_back_and_never_folds(std, float64):
    family = stn.TRANSFORMS["diffeomorphic"]
    velocities = np.random.default_rng(0).normal(0, std, (100, family.size))
    grid = grids.regular((28, 28), True)[None]  # from edge to edge
    there = call(family, velocities, grid)
    assert np.abs(there - grid).max() > 2 * std
    error = 14 * np.linalg.norm(call(family, -velocities, there) - grid, axis=-1).max(axis=(1, 2))
    print(
        f"velocities of std {std}: {np.quantile(error, 0.95):.4f} px off after going there and "
        f"back in 95 % of the images, {error.max():.4f} px at most"
    )
    assert np.quantile(error, 0.95) < 0.05
    assert error.max() < 0.1
    right, down = (
        (call(family, velocities, grid + step) - call(family, velocities, grid - step)) / 2e-6
        for step in 1e-6 * np.eye(2)
    )
    determinant = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
    print(f"smallest determinant of the Jacobian: {determinant.min():.3f}")
    assert determinant.min() > 0


@pytest.mark.parametrize("dimensions", [2, 3])
def test_diffeomorphic_follows_linear_velocities(dimensions):
    # Where the velocity is A x, a point goes to expm(A) x.
    linalg = pytest.importorskip("scipy.linalg")
    family = FAMILIES["diffeomorphic", dimensions]
    rates = np.random.default_rng(0).normal(0, 0.15, (4, dimensions, dimensions))
    nodes = grids.regular(family.lattice, True).reshape(-1, dimensions)
    params = np.stack([(nodes @ rate.T).ravel() for rate in rates])
    points = 0.6 * draw_points(dimensions)
    expected = np.einsum("bij,bhwj->bhwi", linalg.expm(rates), points)
    found = call(family, params, points, align_corners=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_more_steps_follow_fast_velocities_closer():
    velocities, points = near_identity(stn.TRANSFORMS["diffeomorphic"], scale=12), draw_points(2)
    errors = []
    for steps in (1, 4, 16):
        family = stn.Diffeomorphic(steps=steps)
        back = call(family, -velocities, call(family, velocities, points))
        errors.append(np.abs(back - points).max())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="compiled as a whole by JAX only")
def test_following_velocities_is_compiled_as_a_loop():
    import jax

    family, points = stn.TRANSFORMS["diffeomorphic"], draw_points(2)
    program = jax.jit(lambda params: family(params, points)).lower(near_identity(family)).compile()
    # Written out it had some millions of characters, and took 50 times as long to run.
    assert len(program.as_text()) < 300_000


# --- bounds --------------------------------------------------------------------------------------

ROWS = 300  # more than any family has parameters, and the same for all: JAX compiles less

BOUNDS = {
    "scale": (0.7, 1.6),
    "angle": (-0.6, 0.4),
    "shear": (-0.3, 0.5),
    "perspective": (-0.2, 0.3),
    "shift": (-0.1, 0.25),
    "displacement": (-0.05, 0.1),
}


def bounds_of(family):
    return {limit: value for limit, value in BOUNDS.items() if limit in family.limits}


def bound(family, offset, bounds, **options):
    return numbers(family.bound(offset, family.check_bounds(bounds), **options))


def rotation_vector(matrix):
    """The vectors of 3x3 rotation matrices of less than half a turn."""
    cross = matrix - np.swapaxes(matrix, 1, 2)
    vector = np.stack([cross[:, 2, 1], cross[:, 0, 2], cross[:, 1, 0]], axis=-1) / 2
    sin = np.linalg.norm(vector, axis=-1)
    angle = np.arctan2(sin, (np.trace(matrix, axis1=1, axis2=2) - 1) / 2)
    return vector * (angle / sin)[:, None]


def measure(family, params, size, align_corners):
    """What each limit limits, taken from the parameters in another way: `(batch, any)` numbers."""
    params, n, found = params.astype("float64"), family.dimensions, {}
    if family.name not in ("affine", "projective"):
        for name, values in zip(family.parameters, params.T, strict=True):
            limit = "displacement" if family.name in BENDS else name.split("_")[0]
            limit = "shift" if limit in ("x", "y", "z") else limit
            part = 0.5 if limit in ("shift", "displacement") else 1  # of the image, from -1 to 1
            found.setdefault(limit, []).append(part * values)
        return {limit: np.stack(values, axis=1) for limit, values in found.items()}
    if family.name == "projective":
        params, found["perspective"] = params[:, :6], params[:, 6:]
    rows = params.reshape(-1, n, n + 1)
    extents = np.array([(m - 1 if align_corners else m) / 2 for m in reversed(size)])
    pixels = rows[..., :n] * extents[:, None] / extents  # the same in pixels
    # Rotation times shear times scale: a rotation times a triangle.
    rotation, triangle = np.linalg.qr(pixels)
    signs = np.sign(np.einsum("bii->bi", triangle))
    rotation, triangle = rotation * signs[:, None, :], triangle * signs[:, :, None]
    found["scale"] = np.einsum("bii->bi", triangle)
    found["shear"] = (triangle / found["scale"][:, None, :])[:, *np.triu_indices(n, 1)]
    if n == 2:
        found["angle"] = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])[:, None]
    else:
        found["angle"] = rotation_vector(rotation)
    found["shift"] = rows[..., n] / 2
    return found


@pytest.mark.shows("bounds")
@families
def test_bounds_hold(family, gradient):
    size, rng, bounds = SIZES[family.dimensions], np.random.default_rng(0), bounds_of(family)
    assert set(bounds) == set(family.limits)
    far = rng.choice([-1e30, -1e6, -1e3, 1e3, 1e6, 1e30], (ROWS, family.size)).astype("float32")
    for align_corners in (False, True):
        options = {"size": size, "align_corners": align_corners}
        found = measure(family, bound(family, far, bounds, **options), **options)
        assert set(found) == set(bounds)
        for limit, (low, high) in bounds.items():
            assert low - 2e-6 < found[limit].min() < low + 0.01, limit
            assert high - 0.01 < found[limit].max() < high + 2e-6, limit
        still = bound(family, np.zeros((ROWS, family.size), "float32"), bounds, **options)
        np.testing.assert_array_equal(still, [family.identity] * ROWS)
    # Near the identity nothing is bent.
    unit = np.eye(ROWS, family.size)
    for sign in (1, -1):
        offset = (sign * 1e-3 * unit).astype("float32")
        change = bound(family, offset, bounds, **options) - family.identity
        np.testing.assert_allclose(change / 1e-3, sign * unit, rtol=0, atol=0.01)
    # Nothing gets stuck: at 100, a hundred times beyond any bound, there is still a slope.
    at = (100 * rng.choice([-1, 1], (ROWS, family.size))).astype("float32")
    weights = ops.convert_to_tensor(rng.choice([-1.3, -0.7, 0.9, 1.6], at.shape).astype("float32"))
    checked = family.check_bounds(bounds)
    slope = gradient(lambda x: ops.sum(weights * family.bound(x, checked, **options)), at)
    assert np.isfinite(slope).all()
    assert np.abs(slope).min() > 1e-10


@over([family for family in FAMILIES.values() if "shear" in family.limits])
def test_each_limit_alone(family):
    size, rng = SIZES[family.dimensions], np.random.default_rng(0)
    offset = rng.uniform(-0.8, 0.8, (ROWS, family.size)).astype("float32")
    for limit, (low, high) in bounds_of(family).items():
        tight = (0.1 * low + 0.9, 0.1 * high + 0.9) if limit == "scale" else (low / 2, high / 2)
        params = bound(family, offset, {limit: tight}, size=size)
        found = measure(family, params, size, False)
        assert found[limit].min() > tight[0] - 1e-5
        assert found[limit].max() < tight[1] + 1e-5
        for other in set(found) - {limit}:
            assert np.ptp(found[other]) > np.ptp(BOUNDS[other])
    np.testing.assert_allclose(bound(family, offset, {}), family.identity + offset, atol=1e-6)


def test_squash():
    offset = np.array([-np.inf, -1e30, -1e3, -0.01, 0, 0.01, 1, 1e18, 1e30, np.inf], "float32")
    for low, high in ((-0.05, 0.1), (-1, 2), (-30, 0.001)):
        found = numbers(squash(offset, low, high))
        assert (np.diff(found) >= 0).all()
        np.testing.assert_allclose(found[[0, 1, -2, -1]], [low, low, high, high], rtol=1e-6)
        assert found[4] == 0
    # It solves y / (1 - y^2) = offset, in units of the bound; a side may be open.
    y = numbers(squash(offset[2:7], -2, 2)).astype("float64") / 2
    np.testing.assert_allclose(2 * y / (1 - y**2), offset[2:7], rtol=1e-3)
    np.testing.assert_array_equal(numbers(squash(offset, -np.inf, 1.0))[2:5], offset[2:5])


@pytest.mark.parametrize(
    ("bounds", "checked"),
    [
        ({"scale": 2}, {"scale": (0.5, 2)}),
        ({"scale": (0.5, 3)}, {"scale": (0.5, 3)}),
        ({"angle": 0.5}, {"angle": (-0.5, 0.5)}),
        ({"angle": np.float32(0.5), "shift": [-1, 2]}, {"angle": (-0.5, 0.5), "shift": (-1, 2)}),
        ({}, {}),
        (None, {}),
    ],
)
def test_ways_to_give_bounds(bounds, checked):
    assert stn.TRANSFORMS["similarity"].check_bounds(bounds) == checked


@pytest.mark.parametrize(
    "bounds",
    [
        {"shear": 0.5},
        {"scale": 1},
        {"scale": 0.5},
        {"scale": 0},
        {"scale": -2},
        {"scale": (0, 2)},
        {"scale": (1, 2)},
        {"scale": (1.5, 2)},
        {"angle": -0.5},
        {"angle": (0.1, 0.5)},
        {"angle": float("nan")},
        {"angle": None},
        {"angle": "wide"},
        {"angle": (1, 2, 3)},
        {"angle": (0.5,)},
        {"angle": ("low", "high")},
    ],
)
def test_bounds_are_checked(bounds):
    with pytest.raises(ValueError, match=r"(?s)^Expected bounds .*Received: bounds=\{"):
        stn.TRANSFORMS["similarity"].check_bounds(bounds)


# --- the table -----------------------------------------------------------------------------------


def test_table_is_consistent():
    for (name, dimensions), family in FAMILIES.items():
        assert stn.get_transform(name, dimensions=dimensions) is family
        assert stn.get_transform(family, dimensions=dimensions) is family
        assert (family.name, family.dimensions) == (name, dimensions)
        assert len(family.parameters) == len(family.identity) == family.size
        assert len(set(family.parameters)) == family.size
        assert name in repr(family)
        assert (stn.TRANSFORMS.get(name) is family) == (dimensions == 2)


@pytest.mark.parametrize(
    ("transform", "dimensions", "match"),
    [
        ("homography", 2, "'homography'"),
        ("similarity", 3, "'similarity'"),
        ("affine", 4, "dimensions=4"),
        (None, 2, "None"),
        (["affine"], 2, r"\['affine'\]"),
        (FAMILIES["affine", 2], 3, "affine"),
        (FAMILIES["flow", 3], 2, "flow"),
    ],
)
def test_families_that_are_not_there(transform, dimensions, match):
    with pytest.raises(ValueError, match=rf"(?s)^Expected transform .*Received: .*{match}"):
        stn.get_transform(transform, dimensions=dimensions)


@families
def test_errors_of_a_call(family):
    n = family.dimensions
    params, points = np.zeros((2, family.size)), np.zeros((2, 3, n))
    for wrong in (
        (np.zeros((2, family.size + 1)), points),
        (params[0], points),
        (params[None], points),
        (params, points[..., 1:]),
        (params, points[0, 0]),
        (params, np.zeros((3, 4, n))),
    ):
        for method in (family, family.move_back):
            with pytest.raises(ValueError, match=r"(?s)^Expected .*Received: .*\("):
                method(*wrong)
    if family.composable:
        for method in (family.matrix, family.inverse):
            with pytest.raises(ValueError, match=r"(?s)^Expected .*Received: .*\("):
                method(params[0])
