"""Reading images and volumes at points: against a slow loop, and at the extremes.

The comparisons with other libraries are in test_references.py.
"""

import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

import stn
from conftest import pairs
from stn.samplers import PADDINGS, SAMPLERS

FILL = [0.25, -0.5]
SHARP = ("nearest", "bilinear", "bicubic", "lanczos3", "linearized")  # take points of any shape
conventions = pytest.mark.parametrize("align_corners", [False, True])
paddings = pytest.mark.parametrize("padding", PADDINGS)
samplers = pytest.mark.parametrize("sampler", SAMPLERS)


# --- the slow and obvious way --------------------------------------------------------------------


def weigh(sampler, distance):
    """The weight of a pixel this far from the point, along one axis."""
    x, a = abs(distance), -0.75
    if sampler == "bicubic" and x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if sampler == "bicubic":
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0
    if sampler == "lanczos3":
        return np.sinc(x) * np.sinc(x / 3) if x < 3 else 0.0
    return max(1 - x, 0.0)


def find(position, size, padding, align_corners):
    """Which pixel stands at a whole position along one axis; None if there is none."""
    if padding == "border":
        return min(max(position, 0), size - 1)
    if padding == "circular":
        return position % size
    if padding == "reflection" and align_corners and size == 1:
        return 0
    while padding == "reflection" and not 0 <= position < size:
        if align_corners:  # the mirrors stand on the centers of the first and the last pixel
            position = -position if position < 0 else 2 * (size - 1) - position
        else:  # half a pixel further out
            position = -1 - position if position < 0 else 2 * size - 1 - position
    return position if 0 <= position < size else None


def read(image, point, sampler, padding, align_corners):
    """Read `(height, width, channels)`, or a volume, at one normalized point."""
    fill = np.array(FILL if padding in ("constant", "inward") else [0.0] * 2)
    axes = []
    for at, size in zip(point[::-1], image.shape[:-1], strict=True):
        at = (at + 1) / 2 * (size - 1) if align_corners else (at + 1) / 2 * size - 0.5
        if sampler == "nearest":
            weights = {round(at): 1.0}
        else:
            around = range(math.floor(at) - 2, math.floor(at) + 4)
            weights = {position: weigh(sampler, at - position) for position in around}
        total = sum(weights.values()) if sampler == "lanczos3" else 1.0
        axes.append(
            [
                (find(position, size, padding, align_corners), weight / total)
                for position, weight in weights.items()
                if weight
            ]
        )
    result = np.zeros(image.shape[-1])
    for taps in itertools.product(*axes):
        index, weights = zip(*taps, strict=True)
        result += math.prod(weights) * (fill if None in index else image[index])
    return result


# JAX compiles anew for each shape: as many tests as will do share this one, 40 points in all.
BATCH = (2, 5, 4)


def draw(size, align_corners=False):
    """Two random float32 images and points in and around them, away from what rounding decides."""
    rng = np.random.default_rng(size)
    images = rng.uniform(-1, 1, (2, *size, 2)).astype("float32")
    points = rng.uniform(-1.6, 1.6, (*BATCH, len(size))).astype("float32")
    # Halfway between two pixels, "nearest" is decided by the last bit of the coordinate.
    for axis, length in enumerate(reversed(size)):
        half = stn.grids.half_extent(length, align_corners)
        pixel = points[..., axis] * half + (length - 1) / 2
        near = np.abs(pixel - np.floor(pixel) - 0.5) < 1e-3
        points[..., axis] += np.where(near, 0.01 / (half or 1), 0).astype("float32")
    return images, points


def run(images, points, sampler="bilinear", padding="zeros", align_corners=False):
    filled = padding in ("constant", "inward")
    found = stn.sample(
        images,
        points,
        sampler=sampler,
        padding=padding,
        fill_value=FILL if filled else 0.0,
        align_corners=align_corners,
        data_format="channels_last",
    )
    return ops.convert_to_numpy(found)


@pytest.mark.parametrize("sampler", SHARP)
@paddings
@conventions
def test_agrees_with_the_loop(sampler, padding, align_corners):
    # One-pixel axes on purpose, and sizes of both parities.
    for size in ((1, 7), (5, 1), (5, 4), (2, 1, 3), (3, 5, 4)):
        images, points = draw(size, align_corners)
        found = run(images, points, sampler, padding, align_corners)
        for index in np.ndindex(BATCH):
            image, point = images[index[0]].astype("float64"), points[index].astype("float64")
            expected = read(image, point, sampler, padding, align_corners)
            np.testing.assert_allclose(found[index], expected, rtol=0, atol=1e-5)


def test_nearest_rounds_halves_to_even():
    image = np.arange(4, dtype="float32").reshape(1, 1, 4, 1)
    halves = np.array([[[-0.5, 0], [0, 0], [0.5, 0]]], "float32")  # pixels 0.5, 1.5 and 2.5
    np.testing.assert_array_equal(run(image, halves, "nearest").ravel(), [0, 2, 2])


@pytest.mark.parametrize("sampler", SHARP)
def test_a_constant_image_stays_constant(sampler):
    images, points = draw((5, 4))
    for padding in ("border", "reflection", "circular"):
        found = run(np.full_like(images, 3), points, sampler, padding)
        np.testing.assert_allclose(found, 3, rtol=0, atol=1e-5)


# --- antialiased ---------------------------------------------------------------------------------


def grid_of(step, shifts, size, align_corners=False):
    """Turned grids of as many points as pixels, neighbors `step` pixels apart, one per shift."""
    n = len(size)
    points = np.stack(np.meshgrid(*[np.arange(m) - m / 2 for m in size], indexing="ij")[::-1], -1)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(n, n)))[0]
    halves = [stn.grids.half_extent(m, align_corners) or 1 for m in size[::-1]]
    shifts = np.reshape(shifts, (-1,) + (1,) * (n + 1))
    return (shifts + step * points @ turn / halves).astype("float32")


@paddings
@conventions
def test_antialiased_is_bilinear_where_nothing_is_shrunk(padding, align_corners):
    for size, shifts in (((5, 4), (0.3, 0.8)), ((5, 4), (-1.3, 0.1)), ((2, 3, 2), (0.3, 0.9))):
        images, _ = draw(size)
        points = grid_of(0.99, shifts, size, align_corners)
        found = run(images, points, "antialiased", padding, align_corners)
        expected = run(images, points, "bilinear", padding, align_corners)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=str(size))


def test_antialiased_is_pillow_where_an_axis_is_halved_some_times():
    image_module = pytest.importorskip("PIL.Image")
    image, output_size = np.random.default_rng(0).uniform(-1, 1, (8, 12)).astype("float32"), (2, 6)
    found = stn.warp(
        image[None, :, :, None],
        np.array([stn.get_transform("affine").identity]),
        output_size=output_size,
        sampler="antialiased",
        padding="border",
        data_format="channels_last",
    )
    found = ops.convert_to_numpy(found)[0, :, :, 0]
    picture = image_module.fromarray(image).resize(
        output_size[::-1], image_module.Resampling.BILINEAR
    )
    np.testing.assert_allclose(found, np.asarray(picture), rtol=0, atol=1e-5)
    keras_too = ops.image.resize(
        image[:, :, None], output_size, antialias=True, data_format="channels_last"
    )
    np.testing.assert_allclose(found, ops.convert_to_numpy(keras_too)[..., 0], rtol=0, atol=1e-5)


def test_antialiased_shrinks_volumes_axis_by_axis():
    # Two pixels of depth and width, read two pixels apart: all that counts is their mean.
    volumes, _ = draw((2, 3, 2))
    z, y, x = np.meshgrid([-1, 1], [-0.7, 0.1, 0.9], [-1, 1], indexing="ij")
    points = np.stack([np.stack([x, y / 1.5, z], axis=-1)] * 2).astype("float32")
    found = run(volumes, points, "antialiased", "border")
    for i, channel in np.ndindex(2, 2):
        line = volumes[i, ..., channel].mean(axis=(0, 2))
        expected = np.interp([0.3, 1.1, 1.9], np.arange(3), line)[None, :, None]
        np.testing.assert_allclose(
            found[i, ..., channel], np.broadcast_to(expected, (2, 3, 2)), rtol=0, atol=1e-5
        )


def row_of_points(distance):
    """Points side by side around the middle of a row of 61 pixels."""
    x = np.arange(-6.5, 7) * distance / 30.5
    return np.stack([x, 0 * x], axis=-1)[None, None]


def test_antialiased_blends_the_levels_around_the_distance():
    image_module = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).uniform(-1, 1, (1, 61)).astype("float32")
    picture, sizes = image_module.fromarray(image), (61, 31, 16, 8, 4)
    levels = [picture.resize((n, 1), image_module.Resampling.BILINEAR) for n in sizes]
    for distance in (0.7, 1.3, 2, 3, 4.4):
        lower, share = divmod(max(np.log2(distance), 0), 1)
        center = 30 + np.arange(-6.5, 7) * distance
        expected = 0
        for level, weight in ((int(lower), 1 - share), (int(lower) + 1, share)):
            at = (center + 0.5) * sizes[level] / 61 - 0.5
            line = np.asarray(levels[level])[0]
            expected = expected + weight * np.interp(at, np.arange(sizes[level]), line)
        found = run(image[None, :, :, None], row_of_points(distance), "antialiased", "border")
        np.testing.assert_allclose(found[0, 0, :, 0], expected, rtol=0, atol=1e-4)


def test_antialiased_does_not_alias():
    stripes = np.tile([0.0, 1.0], 32).astype("float32").reshape(1, 1, 64, 1)
    grey, aliased = [], []
    for distance in (2, 2.2, 3, 3.4, 4, 4.1):  # pixels
        x = np.arange(-6.5, 7) * distance / 32
        points = np.stack([x, 0 * x], axis=-1)[None, None]
        grey.append(run(stripes, points, "antialiased", "border"))
        aliased.append(np.ptp(run(stripes, points, "bilinear")))
    np.testing.assert_allclose(grey, 0.5, rtol=0, atol=0.02)
    assert max(aliased) > 0.9


@pytest.mark.parametrize("size", [1, 2, 7, 12, 31])
def test_tent_is_that_of_pillow(size):
    image_module = pytest.importorskip("PIL.Image")
    picture = image_module.fromarray(np.eye(size, dtype="float32"))
    for output_size in (1, 2, 5, 6, 11, 31, 40):
        resized = picture.resize((size, output_size), image_module.Resampling.BILINEAR)
        found = stn.filters.tent(size, output_size)
        np.testing.assert_allclose(found, np.asarray(resized), rtol=0, atol=1e-6)


def test_antialiased_needs_a_grid():
    with pytest.raises(ValueError, match=r"(?s)^Expected points that form a grid.*\(2, 5, 2\)"):
        run(np.zeros((2, 3, 4, 1)), np.zeros((2, 5, 2)), "antialiased")


# --- gradients that are not the derivative -------------------------------------------------------


@pytest.fixture
def slope_at(gradient):
    """The gradient of the values to the points."""

    def at(image, points, **options):
        def total(values):
            images = ops.convert_to_tensor(image[None].astype("float64"))
            found = stn.sample(images, values, data_format="channels_last", **options)
            return ops.sum(found) + 0.0 * ops.sum(values)  # PyTorch refuses where nothing counts

        return gradient(total, np.asarray(points, "float64")[None])[0]

    return at


@pairs(
    ("align_corners", "padding"),
    [True, False],
    ["reflection", "constant", "zeros", "border", "circular"],
)
def test_linearized_slope_is_that_of_planes_fitted_around(padding, align_corners, slope_at):
    size = (16, 24)
    image = np.random.default_rng(0).normal(size=(*size, 1))
    pixels = np.array([(3, 2), (23, 0), (8, 8), (-2, 4), (26, 19)])  # x, y
    halves = np.array([stn.grids.half_extent(n, align_corners) for n in size[::-1]])
    points = (pixels - (np.array(size[::-1]) - 1) / 2) / halves
    fill = 0.7 if padding == "constant" else 0.0
    expected = []
    for x, y in pixels:
        slopes = []
        for width in (24 / 8, 24 / 4):
            reach = math.ceil(3 * width)
            rows, values, weights = [], [], []
            for right, down in itertools.product(range(-reach, reach + 1), repeat=2):
                at = (
                    find(y + down, size[0], padding, align_corners),
                    find(x + right, size[1], padding, align_corners),
                )
                rows.append((1, right, down))
                values.append(fill if None in at else image[at][0])
                weights.append(np.exp(-(right**2 + down**2) / (4 * width**2)))  # the square root
            weights = np.array(weights)
            plane = np.linalg.lstsq(
                np.array(rows) * weights[:, None], np.array(values) * weights, rcond=None
            )[0]
            slopes.append(plane[1:])
        expected.append(np.mean(slopes, axis=0) * halves)
    options = {"padding": padding, "align_corners": align_corners, "fill_value": fill}
    found = slope_at(image, np.resize(points, (60, 2)), sampler="linearized", **options)
    np.testing.assert_allclose(found, np.resize(expected, (60, 2)), rtol=0, atol=1e-6)


def test_linearized_climbs_a_ramp(slope_at):
    ramp = np.repeat(np.arange(24.0)[None, :, None], 16, axis=0)
    points = np.random.default_rng(0).uniform(-0.9, 0.9, (60, 2))
    points[0] = 0
    found = slope_at(ramp, points, sampler="linearized", padding="border")
    assert np.all((found[:, 0] > 0.3 * 12) & (found[:, 0] <= 12 + 1e-9)), "12 pixels a unit"
    assert found[0, 0] > 0.8 * 12, "in the middle"
    np.testing.assert_allclose(found[:, 1], 0, rtol=0, atol=1e-9)


def test_linearized_leads_to_a_blob_from_afar(slope_at):
    blob = np.array([0.5, -0.4])
    grid = stn.grids.regular((16, 24))
    image = np.exp(-np.sum((grid - blob) ** 2, axis=-1) / (2 * 0.1**2))[..., None]
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (60, 2))
    toward = (blob - points) * (12, 8)  # in pixels
    distance = np.linalg.norm(toward, axis=-1)
    far = (distance > 5) & (distance < 12)
    assert far.sum() > 20
    slope = slope_at(image, points, sampler="linearized") / (12, 8)
    length = np.linalg.norm(slope, axis=-1)
    cosine = np.sum(slope * toward, axis=-1) / distance / length
    assert cosine[far].min() > 0.8
    near_sighted = np.linalg.norm(slope_at(image, points) / (12, 8), axis=-1)
    assert np.median((length / near_sighted)[far]) > 20


@samplers
def test_inward_has_the_values_of_constant(sampler):
    images, points = draw((5, 4))[0], grid_of(0.9, (0.9, -0.9), (5, 4))
    np.testing.assert_array_equal(
        run(images, points, sampler, "inward"), run(images, points, sampler, "constant")
    )


@pytest.mark.parametrize("sampler", ["bilinear", "nearest"])
def test_inward_leads_back_into_the_image(sampler, slope_at):
    image = np.zeros((8, 10, 1))
    image[2:-2, 2:-2] = 1.0  # nothing but 0 along the edge
    points = np.array([(1.5, 0), (-1.5, 0.3), (0.2, 4), (-0.1, -1.6), (3, -5), (100, 0)])
    outside = np.abs(points) > 1
    for sign, fill in ((1, 0.0), (-1, 2.0)):
        options = {"sampler": sampler, "fill_value": fill}
        found = slope_at(image, points, padding="inward", **options)
        inward = np.where(outside, -np.sign(points), 0)
        np.testing.assert_array_equal(np.sign(found), sign * inward)
        np.testing.assert_array_equal(slope_at(image, points, padding="constant", **options), 0)
    # Inside, the image alone counts.
    points = np.random.default_rng(0).uniform(-0.9, 0.9, (6, 2))
    inward, constant = (slope_at(image, points, padding=p) for p in ("inward", "constant"))
    np.testing.assert_array_equal(inward, constant)


def test_inward_finds_the_way_back(slope_at):
    image = np.random.default_rng(0).uniform(size=(8, 10, 1))
    points = np.random.default_rng(1).choice([-2.5, -1.2, 0.3, 1.7], (6, 2))
    for _ in range(60):
        slope = slope_at(image, points, padding="inward")
        length = np.linalg.norm(slope, axis=-1, keepdims=True)
        points = np.where(
            (np.abs(points) < 1).all(-1, keepdims=True), points, points + slope / length / 10
        )
    assert (np.abs(points) < 1).all()


# --- shapes and types ----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "shape"), [((5, 4), ()), ((5, 4), (2, 1, 3)), ((3, 5, 4), (7,))])
def test_points_may_have_any_shape(size, shape):
    images, points = draw(size)
    expected = run(images, points).reshape(2, 20, 2)[:, : math.prod(shape)]
    points = points.reshape(2, 20, -1)[:, : math.prod(shape)].reshape(2, *shape, -1)
    found = run(images, points)
    np.testing.assert_array_equal(found, expected.reshape(2, *shape, 2))
    first = stn.sample(np.moveaxis(images, -1, 1), points, data_format="channels_first")
    np.testing.assert_array_equal(np.moveaxis(ops.convert_to_numpy(first), 1, -1), found)


def test_data_format_is_the_keras_setting_by_default():
    images, points = draw((5, 4))
    before = keras.config.image_data_format()
    try:
        keras.config.set_image_data_format("channels_first")
        found = stn.sample(images.transpose(0, 3, 1, 2), points)
    finally:
        keras.config.set_image_data_format(before)
    expected = run(images, points).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)


@samplers
def test_empty_batch(sampler):
    found = run(np.zeros((0, 3, 4, 2), "float32"), np.zeros((0, 5, 4, 2)), sampler)
    assert found.shape == (0, 5, 4, 2)
    found = run(np.zeros((0, 3, 4, 2, 1), "float32"), np.zeros((0, 2, 5, 4, 3)), sampler)
    assert found.shape == (0, 2, 5, 4, 1)


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("uint8", 100, 50),
        ("uint8", 255, 128),  # 127.5, rounded to even
        ("int16", -101, -50),
        ("int32", 7, 4),
        ("bool", True, False),
        ("float16", 3, 1.5),
        ("bfloat16", 3, 1.5),
        ("float32", 3, 1.5),
    ],
)
def test_types_are_kept_and_integers_rounded(dtype, value, expected):
    images = ops.cast(np.full((1, 2, 2, 1), value), dtype)
    edge = np.array([[[1.0, 0.0]]], "float32")  # halfway to the zeros outside
    found = stn.sample(images, edge, data_format="channels_last")
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(found, "float32")), expected)


@pytest.mark.parametrize("sampler", ["bicubic", "lanczos3"])
def test_overshoot_is_clipped_to_integer_types(sampler):
    steps = np.repeat([0, 255, 0, 255, 255], 2).astype("uint8").reshape(1, 1, 10, 1)
    points = np.stack([np.linspace(-1, 1, 30), np.zeros(30)], axis=-1)[None]
    exact = run(steps.astype("float32"), points, sampler, "border")
    assert exact.min() < -5, "nothing to clip"
    assert exact.max() > 260
    found = run(steps, points, sampler, "border")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.clip(np.round(exact), 0, 255))


@pytest.mark.parametrize(
    ("fill_value", "expected"), [(300, 255), (-5, 0), (12.4, 12), (float("nan"), 0), ([7.6], 8)]
)
def test_fill_value_is_clipped_to_integer_types(fill_value, expected):
    found = stn.sample(
        np.full((1, 2, 2, 1), 9, "uint8"),
        np.full((1, 1, 2), 3.0),
        padding="constant",
        fill_value=fill_value,
        data_format="channels_last",
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)


@pytest.mark.parametrize("sampler", ["nearest", "bilinear", "bicubic", "antialiased"])
@pytest.mark.parametrize("aligned", [False, True])
def test_a_fill_value_of_nan_stays_outside(sampler, aligned):
    images = np.random.default_rng(0).uniform(1, 2, (1, 9, 9, 2)).astype("float32")
    family = "translation" if aligned else "affine"
    params = [[0.4, 0.0]] if aligned else [[1, 0, 0.4, 0, 1, 0]]
    options = {"sampler": sampler, "padding": "constant"}
    found, plain = (
        ops.convert_to_numpy(
            stn.warp(images, np.array(params, "float32"), family, fill_value=fill, **options)
        )
        for fill in ((np.nan, 3.0), (0.0, 3.0))
    )
    assert not np.isnan(found[..., 1]).any()
    np.testing.assert_allclose(found[..., 1], plain[..., 1], atol=1e-6)
    inside = ~np.isnan(found[..., 0])
    np.testing.assert_allclose(found[..., 0][inside], plain[..., 0][inside], atol=1e-6)
    reach = {"nearest": 7, "bilinear": 7, "bicubic": 6, "antialiased": 7}[sampler]
    assert inside[0].sum() == 9 * reach  # all that read nothing outside


@pytest.mark.parametrize("padding", ["reflection", "circular"])
@pytest.mark.parametrize("sampler", ["nearest", "bilinear"])
def test_an_infinite_point_has_no_mirror_image(sampler, padding):
    images = np.ones((1, 4, 4, 1), "float32")
    points = np.array([[[np.inf, 0.0], [0.0, -np.inf], [0.3, 0.1]]], "float32")
    found = ops.convert_to_numpy(stn.sample(images, points, sampler=sampler, padding=padding))
    np.testing.assert_array_equal(np.isnan(found[0, :, 0]), [True, True, False])


@pytest.mark.parametrize("fill_value", [(0.1, 0.2, 0.3), [0.1, 0.2, 0.3], np.arange(3), 0, 2])
def test_fill_value_per_channel(fill_value):
    images = np.ones((1, 2, 2, 3), "float32")
    points = np.array([[[9.0, 0.0], [0.0, 0.0]]])
    for data_format, axis in (("channels_last", -1), ("channels_first", 1)):
        found = stn.sample(
            np.moveaxis(images, -1, axis),
            points,
            padding="constant",
            fill_value=fill_value,
            data_format=data_format,
        )
        found = np.moveaxis(ops.convert_to_numpy(found), axis, -1)[0]
        np.testing.assert_allclose(found[0], np.broadcast_to(fill_value, 3), rtol=1e-6)
        np.testing.assert_allclose(found[1], 1, rtol=1e-6)


# --- extremes ------------------------------------------------------------------------------------

# By how much the weights of an axis can exceed 1 in total, signs aside.
GAIN = {"bicubic": 1.4, "lanczos3": 1.7}


@pytest.mark.parametrize("sampler", ["bilinear", "antialiased", "linearized"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_pixel_that_is_not_a_number_spoils_what_is_around_it(sampler, bad):
    images = np.ones((1, 8, 8, 1), "float32")
    images[0, 1, 1] = bad
    params = np.array([[0.9, 0.1, 0.05, -0.1, 0.9, 0.02]], "float32")
    found = np.isfinite(keras.ops.convert_to_numpy(stn.warp(images, params, sampler=sampler)))
    assert 1 <= (~found).sum() <= 9
    assert found[0, 4:].all()


@samplers
@pytest.mark.parametrize("padding", ["zeros", "border", "inward"])
def test_an_axis_of_one_pixel_has_no_outside(sampler, padding):
    images = np.full((1, 1, 1, 1), 3.0, "float32")
    points = np.zeros((1, 1, 4, 2), "float32")
    points[0, 0, :, 0] = [0.0, 1e30, np.inf, -np.inf]
    found = stn.sample(images, points, sampler=sampler, padding=padding, align_corners=True)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found).ravel(), 3.0, rtol=1e-6)


def test_antialiased_whatever_type_keras_makes_by_default():
    expected = stn.warp(np.ones((1, 8, 8, 1), "float32"), HALF, sampler="antialiased")
    try:
        keras.config.set_floatx("bfloat16")
        found = stn.warp(np.ones((1, 8, 8, 1), "float32"), HALF, sampler="antialiased")
    finally:
        keras.config.set_floatx("float32")
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (found, expected)), atol=1e-6)


HALF = np.array([[0.5, 0.0, 0.2, 0.0, 0.5, 0.0]], "float32")
FAR = [np.nan, np.inf, -np.inf, 1e6, -1e6, 1e30, -1e30, 0.1]
EXTREMES = {
    2: [(x, y) for x in FAR for y in FAR if 0.1 in (x, y) or x == y]
    + [(np.nan, np.nan), (np.nan, np.inf), (1e30, np.nan), (np.inf, -np.inf), (-1e6, 1e30)],
    3: list(itertools.product([np.nan, -np.inf, 1e6, 0.1], [np.nan, -1e30, 0.1], [1e6, 0.1])),
}


@samplers
@paddings
@conventions
def test_extreme_points(sampler, padding, align_corners):
    for size in ((5, 4), (1, 7), (3, 5, 4)):
        if sampler == "antialiased" and len(size) == 3:
            continue  # takes another shape of points; it goes the same way as for images
        points = np.full((40, len(size)), 0.1, "float32")
        points[: len(EXTREMES[len(size)])] = EXTREMES[len(size)]
        images = np.random.default_rng(3).uniform(1, 2, (2, *size, 2)).astype("float32")
        found = run(images, points.reshape(*BATCH, -1), sampler, padding, align_corners)
        found = found.reshape(40, 2)
        is_nan, is_infinite = np.isnan(points).any(axis=-1), np.isinf(points).any(axis=-1)
        inside = (points == np.float32(0.1)).all(axis=-1)
        np.testing.assert_array_equal(found[is_nan], np.nan)
        gain = GAIN.get(sampler, 1.0) ** len(size)
        low, high = 1.5 - 0.5 * gain - 1e-5, 1.5 + 0.5 * gain + 1e-5
        outside = {"zeros": [0, 0], "constant": FILL, "inward": FILL}.get(padding)
        if outside is None:
            assert np.isfinite(found[~is_nan & ~is_infinite]).all()
            read_something = found[np.isfinite(found)]
            assert np.isfinite(found[~is_nan]).all() or is_infinite.any()
            assert read_something.min() >= low
            assert read_something.max() <= high
        elif 1 not in size:
            out = found[~is_nan & ~inside]
            np.testing.assert_allclose(out - outside, 0, rtol=0, atol=1e-6)
            if sampler != "antialiased":  # the neighbors of this point are far away
                assert low <= found[inside].min()
                assert found[inside].max() <= high
        if size == (5, 4):
            bytes_ = (100 * images).astype("uint8")
            whole = run(bytes_, points.reshape(*BATCH, -1), sampler, padding, align_corners)
            assert whole.dtype == np.uint8
            np.testing.assert_array_equal(whole.reshape(40, 2)[is_nan], 0)
            assert whole.max() <= 100 * high


@pytest.mark.parametrize(
    ("padding", "expected"),
    [("zeros", [0, 0]), ("border", [7, 7]), ("reflection", [0.25, 2]), ("circular", [0.25, 2])],
)
def test_float64_coordinates_keep_their_fraction_far_away(padding, expected, float64):
    image = np.array([0.0, 1, 3, 7]).reshape(1, 1, 4, 1)
    pixel = 8 * 2.0**24 + np.array([0.25, 1.5])
    points = np.stack([(pixel - 1.5) / 2, 0 * pixel], axis=-1)[None]
    found = run(image, points, "bilinear", padding).ravel()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


# --- gradients -----------------------------------------------------------------------------------


def of_points(image, **options):
    def function(values):
        images = np.repeat(image[None], values.shape[0], axis=0)
        return stn.sample(images, values, data_format="channels_last", **options)

    return function


def of_image(points, **options):
    def function(values):
        many = np.repeat(points[None], values.shape[0], axis=0)
        return stn.sample(values, many, data_format="channels_last", **options)

    return function


@pairs(
    ("sampler", "border"),
    ["antialiased", "bicubic", "lanczos3", "bilinear"],
    [
        ("zeros", False),
        ("reflection", False),
        ("reflection", True),
        ("border", True),
        ("circular", False),
        ("constant", True),
    ],
    everywhere=["bilinear"],
)
def test_gradient_to_the_points(check_gradient, sampler, border):
    padding, align_corners = border
    rng = np.random.default_rng(4)
    image = rng.normal(size=(4, 5, 2))
    points = rng.uniform(-1.5, 1.5, (3, 4, 2))
    options = {"sampler": sampler, "padding": padding, "align_corners": align_corners}
    check_gradient(of_points(image, **options), points)


@pairs(("sampler", "padding"), SAMPLERS, PADDINGS, everywhere=["bilinear"])
def test_gradient_to_the_image(check_gradient, sampler, padding):
    rng = np.random.default_rng(4)
    points = rng.uniform(-1.5, 1.5, (3, 4, 2))
    options = {"sampler": sampler, "padding": padding, "align_corners": True}
    check_gradient(of_image(points, **options), rng.normal(size=(4, 5, 2)))


def test_gradients_in_volumes(check_gradient):
    rng = np.random.default_rng(4)
    image, points = rng.normal(size=(3, 4, 2, 1)), rng.uniform(-1.3, 1.3, (2, 2, 2, 3))
    options = {"sampler": "bicubic", "padding": "reflection"}
    check_gradient(of_points(image, **options), points)
    check_gradient(of_image(points, **options), image)


@pairs(("sampler", "padding"), SAMPLERS, PADDINGS, everywhere=["bilinear"])
def test_gradients_are_finite_far_away(gradient, sampler, padding):
    rng = np.random.default_rng(4)
    images, points = rng.normal(size=(40, 4, 5, 2)), rng.uniform(-1, 1, (40, 3, 4, 2))
    points[0, :2, :3, 0] = (1e6, -1e30, 0.1)
    points[0, :2, :3, 1] = np.transpose([(-1e6, 1e30)])
    points[1, 0, 0] = (1e6, 0)

    def total(values):
        found = stn.sample(
            images, values, sampler=sampler, padding=padding, data_format="channels_last"
        )
        return ops.sum(found) + 0.0 * ops.sum(values)  # PyTorch refuses where nothing counts

    found = gradient(total, points)
    assert np.isfinite(found).all()
    assert sampler == "nearest" or np.abs(found).max() > 0.1


# --- errors --------------------------------------------------------------------------------------

IMAGES, POINTS = np.zeros((2, 3, 4, 2), "float32"), np.zeros((2, 5, 2), "float32")
VOLUMES = np.zeros((2, 3, 4, 5, 2), "float32")


@pytest.mark.parametrize(
    ("images", "points", "wrong", "match"),
    [
        (IMAGES, POINTS, {"sampler": "cubic"}, "sampler='cubic'"),
        (IMAGES, POINTS, {"sampler": None}, "sampler=None"),
        (IMAGES, POINTS, {"padding": "wrap"}, "padding='wrap'"),
        (IMAGES, POINTS, {"padding": "border", "fill_value": 1.0}, r"fill_value=1\.0"),
        (IMAGES, POINTS, {"padding": "zeros", "fill_value": (0, 1)}, r"fill_value=\(0, 1\)"),
        (IMAGES, POINTS, {"padding": "constant", "fill_value": "red"}, "fill_value='red'"),
        (IMAGES, POINTS, {"padding": "constant", "fill_value": None}, "fill_value=None"),
        (IMAGES, POINTS, {"padding": "constant", "fill_value": (1, 2, 3)}, r"\(1, 2, 3\)"),
        (IMAGES, POINTS, {"padding": "inward", "fill_value": [[1, 2]]}, r"\[\[1, 2\]\]"),
        (IMAGES, POINTS, {"data_format": "NHWC"}, "data_format='NHWC'"),
        (IMAGES[0], POINTS, {}, r"\(3, 4, 2\)"),
        (IMAGES[None, None], POINTS, {}, r"\(1, 1, 2, 3, 4, 2\)"),
        (IMAGES[:, :0], POINTS, {}, r"\(2, 0, 4, 2\)"),
        (IMAGES, POINTS[..., :1], {}, r"2, 5, 1"),
        (IMAGES, POINTS[0, 0], {}, r"points\.shape="),
        (IMAGES, POINTS[:1], {}, r"points\.shape=\(1, 5, 2\)"),
        (IMAGES, np.zeros((2, 5, 3)), {}, r"2, 5, 3"),
        (VOLUMES, POINTS, {}, r"2, 5, 2"),
        (VOLUMES[:, :0], np.zeros((2, 5, 3)), {}, r"\(2, 0, 4, 5, 2\)"),
    ],
)
def test_errors(images, points, wrong, match):
    with pytest.raises(ValueError, match=rf"(?s)^Expected .*Received: .*{match}"):
        stn.sample(images, points, **{"data_format": "channels_last", **wrong})


@pytest.mark.parametrize("size", [(None, None), (None, 3, 4), (3, 4, None)])
def test_unknown_size_is_refused(size):
    with pytest.raises(ValueError, match=r"(?s)^Expected .*known height.*Received: .*None"):
        stn.sample(
            keras.KerasTensor((None, *size, 1)),
            keras.KerasTensor((None, 5, len(size))),
            data_format="channels_last",
        )
