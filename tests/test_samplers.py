"""Reading images at points: against a loop, PyTorch and SciPy, and at the extremes."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import stn
from stn.samplers import PADDINGS, SAMPLERS

FILL = 0.25
OPTIONS = list(itertools.product(SAMPLERS, PADDINGS, (False, True)))
options = pytest.mark.parametrize(("sampler", "padding", "align_corners"), OPTIONS)

# One-pixel axes on purpose, and sizes of both parities.
RANDOM = np.random.default_rng(0)
SHAPES = [(1, 1, 1), (1, 9, 2), (8, 1, 3), (2, 2, 1)] + [
    (*RANDOM.integers(1, 20, 2).tolist(), int(RANDOM.integers(1, 5))) for _ in range(38)
]


def read(image, x, y, sampler, padding, align_corners):
    """Read `(height, width, channels)` at one normalized point, the slow and obvious way."""
    height, width, channels = image.shape
    if align_corners:
        column, row = (x + 1) / 2 * (width - 1), (y + 1) / 2 * (height - 1)
    else:
        column, row = (x + 1) / 2 * width - 0.5, (y + 1) / 2 * height - 0.5

    def bring_inside(at, size):
        if padding == "reflection":
            low, high = (0, size - 1) if align_corners else (-0.5, size - 0.5)
            while low < high and not low <= at <= high:
                at = 2 * low - at if at < low else 2 * high - at
        return min(max(at, 0), size - 1)

    if padding in ("border", "reflection"):
        column, row = bring_inside(column, width), bring_inside(row, height)

    def pixel(row, column):
        if 0 <= row < height and 0 <= column < width:
            return image[row, column]
        return np.full(channels, FILL if padding == "constant" else 0.0)

    if sampler == "nearest":
        return pixel(round(row), round(column))
    top, left = int(np.floor(row)), int(np.floor(column))
    down, right = row - top, column - left
    return (
        (1 - down) * (1 - right) * pixel(top, left)
        + (1 - down) * right * pixel(top, left + 1)
        + down * (1 - right) * pixel(top + 1, left)
        + down * right * pixel(top + 1, left + 1)
    )


def draw(shape, count, align_corners, seed=0):
    """Two random float32 images and points in and around them, away from what rounding decides."""
    rng = np.random.default_rng([seed, *shape])
    images = rng.uniform(-1, 1, (2, *shape)).astype("float32")
    points = rng.uniform(-1.6, 1.6, (2, count, 2)).astype("float32")
    # Halfway between two pixels, "nearest" is decided by the last bit of the coordinate.
    for axis, size in ((0, shape[1]), (1, shape[0])):
        half = stn.grids.half_extent(size, align_corners)
        pixel = points[..., axis] * half + (size - 1) / 2
        near = np.abs(pixel - np.floor(pixel) - 0.5) < 1e-3
        points[..., axis] += np.where(near, 0.01 / (half or 1), 0).astype("float32")
    return images, points


def run(images, points, sampler, padding, align_corners):
    return ops.convert_to_numpy(
        stn.sample(
            images,
            points,
            sampler=sampler,
            padding=padding,
            fill_value=FILL if padding == "constant" else 0.0,
            align_corners=align_corners,
            data_format="channels_last",
        )
    )


@options
def test_agrees_with_the_loop(sampler, padding, align_corners):
    for shape in ((1, 1, 1), (1, 7, 2), (5, 1, 1), (4, 6, 3)):
        images, points = draw(shape, 40, align_corners)
        expected = [
            [read(image, x, y, sampler, padding, align_corners) for x, y in row]
            for image, row in zip(images.astype("float64"), points.astype("float64"), strict=True)
        ]
        found = run(images, points, sampler, padding, align_corners)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=str(shape))


@options
def test_agrees_with_torch(sampler, padding, align_corners):
    torch = pytest.importorskip("torch")
    if padding == "constant":
        pytest.skip("PyTorch has no such padding; the loop and SciPy cover it")
    for shape in SHAPES:  # 42, times 2 images, times 12 options: 1,008 cases
        images, points = draw(shape, 40, align_corners, seed=1)
        expected = torch.nn.functional.grid_sample(
            torch.tensor(images).permute(0, 3, 1, 2),
            torch.tensor(points)[:, None],
            sampler,
            padding,
            align_corners,
        )[:, :, 0].permute(0, 2, 1)
        found = run(images, points, sampler, padding, align_corners)
        np.testing.assert_allclose(
            found, expected.numpy(), rtol=0, atol=1e-5, err_msg=f"shape={shape}"
        )


@options
def test_agrees_with_scipy(sampler, padding, align_corners):
    ndimage = pytest.importorskip("scipy.ndimage")
    # What SciPy calls "constant" does not blend with the fill value at the edge.
    modes = {
        "zeros": "grid-constant",
        "constant": "grid-constant",
        "border": "nearest",
        "reflection": "mirror" if align_corners else "reflect",
    }
    for height, width, _ in SHAPES[:20]:
        if padding == "reflection" and align_corners and 1 in (height, width):
            continue  # SciPy cannot mirror about the center of a single pixel
        images, points = draw((height, width, 1), 40, align_corners, seed=2)
        x, y = np.moveaxis(points.astype("float64"), -1, 0)
        pixels = [
            stn.grids.to_pixel(y, height, align_corners),
            stn.grids.to_pixel(x, width, align_corners),
        ]
        expected = [
            ndimage.map_coordinates(
                images[i, ..., 0].astype("float64"),
                [axis[i] for axis in pixels],
                order=SAMPLERS.index(sampler),
                mode=modes[padding],
                cval=FILL if padding == "constant" else 0.0,
            )
            for i in range(2)
        ]
        found = run(images, points, sampler, padding, align_corners)[..., 0]
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=1e-5, err_msg=f"shape={(height, width)}"
        )


def test_nearest_rounds_halves_to_even():
    image = np.arange(4, dtype="float32").reshape(1, 1, 4, 1)
    halves = np.array([[[-0.5, 0], [0, 0], [0.5, 0]]], "float32")  # pixels 0.5, 1.5 and 2.5
    found = stn.sample(image, halves, sampler="nearest", data_format="channels_last")
    np.testing.assert_array_equal(ops.convert_to_numpy(found).ravel(), [0, 2, 2])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
def test_points_may_have_any_shape(shape):
    images, points = draw((4, 5, 3), 6, False)
    points = points[:, : int(np.prod(shape))]
    flat = run(images, points, "bilinear", "zeros", False)
    found = run(images, points.reshape(2, *shape, 2), "bilinear", "zeros", False)
    assert found.shape == (2, *shape, 3)
    np.testing.assert_array_equal(found.reshape(flat.shape), flat)
    first = stn.sample(
        images.transpose(0, 3, 1, 2), points.reshape(2, *shape, 2), data_format="channels_first"
    )
    assert tuple(first.shape) == (2, 3, *shape)
    np.testing.assert_array_equal(np.moveaxis(ops.convert_to_numpy(first), 1, -1), found)


def test_data_format_is_the_keras_setting_by_default():
    images, points = draw((4, 5, 3), 6, False)
    before = keras.config.image_data_format()
    try:
        keras.config.set_image_data_format("channels_first")
        found = stn.sample(images.transpose(0, 3, 1, 2), points)
    finally:
        keras.config.set_image_data_format(before)
    expected = run(images, points, "bilinear", "zeros", False)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected.transpose(0, 2, 1))


def test_empty_batch():
    found = run(np.zeros((0, 3, 4, 2), "float32"), np.zeros((0, 5, 2)), "bilinear", "zeros", False)
    assert found.shape == (0, 5, 2)


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


@pytest.mark.parametrize(
    ("fill_value", "expected"), [(300, 255), (-5, 0), (12.4, 12), (float("nan"), 0)]
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


@options
def test_extreme_points(sampler, padding, align_corners):
    values = [np.nan, np.inf, -np.inf, 1e6, -1e6, 1e30, -1e30]
    points = np.array([list(itertools.product([*values, 0.1], repeat=2))], "float32")
    images = np.random.default_rng(3).uniform(1, 2, (1, 5, 4, 1)).astype("float32")
    for shape in ((5, 4), (1, 1)):
        image = images[:, : shape[0], : shape[1]]
        found = run(image, points, sampler, padding, align_corners)[0, :, 0]
        is_nan = np.isnan(points[0]).any(axis=-1)
        is_infinite = np.isinf(points[0]).any(axis=-1)
        np.testing.assert_array_equal(found[is_nan], np.nan)
        read_something = found[~is_nan & ~(is_infinite & np.isnan(found))]
        outside = {"zeros": 0.0, "constant": FILL}.get(padding)
        if outside is None:
            assert read_something.min() >= image.min() - 1e-6
            assert read_something.max() <= image.max() + 1e-6
        elif shape == (5, 4):
            inside = (points[0] == np.float32(0.1)).all(axis=-1)
            np.testing.assert_array_equal(found[~is_nan & ~inside], outside)
            assert found[inside].min() >= 1 - 1e-6
        whole = run((100 * image).astype("uint8"), points, sampler, padding, align_corners)[0, :, 0]
        assert whole.dtype == np.uint8
        np.testing.assert_array_equal(whole[is_nan], 0)
        assert whole.max() <= 200


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_gradients(check_gradient, padding, align_corners):
    rng = np.random.default_rng(4)
    image = rng.normal(size=(4, 5, 2))
    points = rng.uniform(-1.5, 1.5, (12, 2))

    def from_points(values):
        images = np.repeat(image[None], values.shape[0], axis=0)
        return stn.sample(
            images,
            values,
            padding=padding,
            align_corners=align_corners,
            data_format="channels_last",
        )

    check_gradient(from_points, points)
    for sampler in SAMPLERS:

        def from_image(values, sampler=sampler):
            return stn.sample(
                values,
                np.repeat(points[None], values.shape[0], axis=0),
                sampler=sampler,
                padding=padding,
                align_corners=align_corners,
                data_format="channels_last",
            )

        check_gradient(from_image, image)


IMAGES, POINTS = np.zeros((2, 3, 4, 1), "float32"), np.zeros((2, 5, 2), "float32")


@pytest.mark.parametrize(
    ("images", "points", "wrong", "match"),
    [
        (IMAGES, POINTS, {"sampler": "cubic"}, "sampler='cubic'"),
        (IMAGES, POINTS, {"sampler": None}, "sampler=None"),
        (IMAGES, POINTS, {"padding": "wrap"}, "padding='wrap'"),
        (IMAGES, POINTS, {"padding": "border", "fill_value": 1.0}, "fill_value=1.0"),
        (IMAGES, POINTS, {"data_format": "NHWC"}, "data_format='NHWC'"),
        (IMAGES[0], POINTS, {}, r"\(3, 4, 1\)"),
        (IMAGES[None], POINTS, {}, r"\(1, 2, 3, 4, 1\)"),
        (IMAGES[:, :0], POINTS, {}, r"\(2, 0, 4, 1\)"),
        (IMAGES, POINTS[..., :1], {}, r"2, 5, 1"),
        (IMAGES, POINTS[0, 0], {}, r"points\.shape="),
        (IMAGES, POINTS[:1], {}, r"points\.shape=\(1, 5, 2\)"),
    ],
)
def test_errors(images, points, wrong, match):
    with pytest.raises(ValueError, match=rf"(?s)^Expected .*Received: .*{match}"):
        stn.sample(images, points, **{"data_format": "channels_last", **wrong})


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match=r"(?s)^Expected .*known height.*Received: .*None"):
        stn.sample(
            keras.KerasTensor((None, None, 4, 1)),
            keras.KerasTensor((None, 5, 2)),
            data_format="channels_last",
        )
