"""`warp`, and points and boxes with it: what they mean, and that the identity changes nothing."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import stn
from conftest import over
from stn import grids
from stn.samplers import PADDINGS, SAMPLERS
from stn.transforms import FAMILIES, check_output_size, deserialize, freeze_size, serialize

families = over(FAMILIES.values())
conventions = pytest.mark.parametrize("align_corners", [False, True])
paddings = pytest.mark.parametrize("padding", PADDINGS)
samplers = pytest.mark.parametrize("sampler", SAMPLERS)

# One shape in as many tests as will do: JAX compiles anew for each.
SIZES = {2: (5, 4), 3: (2, 3, 2)}
IMAGES, VOLUMES = (
    np.random.default_rng(0).uniform(0, 1, (2, *size, 2)).astype("float32")
    for size in SIZES.values()
)
FILL = [9.0, -2.0]


def identity(family, batch=2):
    return np.array([family.identity] * batch, "float32")


def near_identity(family, batch=2, scale=1.0, seed=0):
    noise = np.random.default_rng(seed).normal(size=(batch, family.size))
    spread = 0.04 if family.name in ("tps", "flow", "diffeomorphic") else 0.15
    return (np.array(family.identity) + scale * spread * noise).astype("float32")


def warp(images, params, transform="affine", **options):
    if options.get("padding") in ("constant", "inward"):
        options.setdefault("fill_value", FILL)
    result = stn.warp(images, params, transform, **{"data_format": "channels_last", **options})
    return ops.convert_to_numpy(ops.cast(result, "float32"))


def numbers(tensor):
    return ops.convert_to_numpy(tensor)


# --- the identity --------------------------------------------------------------------------------


@pytest.mark.shows("identity")
@families
@conventions
def test_identity_returns_the_images(family, align_corners):
    images = {2: IMAGES, 3: VOLUMES}[family.dimensions]
    # What is read depends on the grid alone, and on whether its axes are read apart.
    everything = family.name in ("attention", "affine") and family.dimensions == 2
    for sampler, padding in itertools.product(SAMPLERS, PADDINGS):
        if everything or (sampler, padding) in [("bilinear", "zeros"), ("lanczos3", "reflection")]:
            options = {"sampler": sampler, "padding": padding, "align_corners": align_corners}
            found = warp(images, identity(family), family, **options)
            np.testing.assert_array_equal(found, images, err_msg=str(options))


@pytest.mark.shows("identity")
@families
@conventions
def test_identity_is_the_regular_grid(family, align_corners):
    # What is read depends on the grid alone, so at these sizes one family stands for all.
    sizes = {2: [(1, 7), (31, 20)], 3: [(1, 12, 31)]}
    for size in sizes[family.dimensions]:
        regular = grids.regular(size, align_corners)[None].astype("float32")
        found = family(identity(family, 1), regular, size=size, align_corners=align_corners)
        np.testing.assert_array_equal(numbers(found), regular, err_msg=str(size))


@conventions
@pytest.mark.parametrize(
    ("size", "some"),
    [
        ((1, 7), SAMPLERS),
        ((1, 1), ("nearest", "bilinear")),
        pytest.param((3, 1, 4), ("nearest", "bilinear"), marks=pytest.mark.once),
        pytest.param((224, 300), ("nearest", "bilinear"), marks=pytest.mark.once),
    ],
)
def test_identity_at_odd_sizes(some, align_corners, size):
    images = np.random.default_rng(0).uniform(-1, 1, (1, *size, 2)).astype("float32")
    params = identity(FAMILIES["affine", len(size)], 1)
    for sampler, padding in itertools.product(some, PADDINGS):
        options = {"sampler": sampler, "padding": padding, "align_corners": align_corners}
        found = warp(images, params, **options)
        np.testing.assert_array_equal(found, images, err_msg=str(options))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32", "float64", "bool"])
def test_identity_keeps_types_in_both_data_formats(dtype, request):
    if dtype == "float64":
        request.getfixturevalue("float64")
    cases = [(IMAGES, "bilinear")]
    if dtype != "float64":
        cases += [(VOLUMES, "bilinear")]
    if dtype in ("uint8", "bfloat16"):
        cases += [(IMAGES, sampler) for sampler in SAMPLERS]
    for (images, sampler), (data_format, axis) in itertools.product(
        cases, [("channels_last", -1), ("channels_first", 1)]
    ):
        params = identity(FAMILIES["affine", images.ndim - 2])
        values = ops.cast(np.moveaxis(255 * images, -1, axis), dtype)
        found = stn.warp(values, params, sampler=sampler, data_format=data_format)
        assert keras.backend.standardize_dtype(found.dtype) == dtype
        as_float = [numbers(ops.cast(x, "float32")) for x in (found, values)]
        np.testing.assert_array_equal(*as_float, err_msg=f"{sampler}, {data_format}")


# --- what a warp does ----------------------------------------------------------------------------


@pytest.mark.shows("rows")
@families
def test_rows_of_the_batch_are_independent(family):
    images = {2: IMAGES, 3: VOLUMES}[family.dimensions]
    params = near_identity(family)
    together = warp(images, params, family)
    for i in range(2):
        others = np.where(np.arange(2) == i, 0, 7).astype("float32")
        shape = (2,) + (1,) * (images.ndim - 1)
        alone = warp(images + others.reshape(shape), params + others[:, None], family)
        np.testing.assert_array_equal(together[i], alone[i])
        assert np.abs(together[1 - i] - alone[1 - i]).max() > 0.1


@conventions
@pytest.mark.parametrize("size", [(20, 50), (8, 12, 20)])
def test_rotations_shear_nothing(size, align_corners):
    n, scale = len(size), 0.7
    grid = grids.regular(size, align_corners).astype("float32")[None]
    if n == 2:
        family, params = FAMILIES["similarity", 2], np.array([[scale, 0.6, 0.1, -0.2]], "float32")
    else:
        family, params = FAMILIES["rigid", 3], np.array([[0.5, -0.3, 0.8, 0.1, 0, 0]], "float32")
        scale = 1.0
    moved = numbers(family(params, grid, size=size, align_corners=align_corners))[0]
    pixels = np.stack(
        [grids.to_pixel(moved[..., i], m, align_corners) for i, m in enumerate(reversed(size))], -1
    )
    # In pixels, a step along each axis stays as long and perpendicular as the others.
    steps = [np.diff(pixels, axis=axis)[(slice(1),) * n].ravel() for axis in range(n)]
    np.testing.assert_allclose(np.stack(steps) @ np.stack(steps).T, scale**2 * np.eye(n), atol=1e-4)
    if n == 2:  # steps down and right
        cos, sin = scale * np.cos(0.6), scale * np.sin(0.6)
        np.testing.assert_allclose(steps, [(-sin, cos), (cos, sin)], atol=1e-4)


@conventions
def test_positive_translation_shows_what_lies_further_along(align_corners):
    for images, size in ((IMAGES, SIZES[2]), (VOLUMES, SIZES[3])):
        n = len(size)
        for axis in range(n):  # x first
            params = np.zeros((2, n))
            params[:, axis] = 1 / grids.half_extent(size[n - 1 - axis], align_corners)
            found = warp(images, params, "translation", align_corners=align_corners)
            found, expected = (np.moveaxis(x, n - axis, 1) for x in (found, images))
            np.testing.assert_allclose(found[:, :-1], expected[:, 1:], rtol=0, atol=1e-5)
            # The last pixel is read where the image ends, which may round to just inside it.
            np.testing.assert_allclose(found[:, -1], 0, rtol=0, atol=1e-5)


def test_scale_below_one_zooms_in():
    image = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    found = warp(image, np.array([[0.5, 0, 0]]), "attention", output_size=2)
    np.testing.assert_allclose(found, image[:, 1:3, 1:3], rtol=0, atol=1e-5)
    found = warp(image, np.array([[1.0, 0.5, 0, 0]]), "scaling", output_size=(2, 4))
    rows = (image[:, ::2] + image[:, 1::2]) / 2
    middle = (rows[:, 0, 1:3] + rows[:, 1, 1:3]) / 2
    np.testing.assert_allclose(found.mean(axis=1)[:, 1:3], middle, rtol=0, atol=1e-5)


@conventions
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_positive_angle_turns_the_picture_counterclockwise(quarters, align_corners):
    images = np.random.default_rng(0).normal(size=(1, 6, 6, 2)).astype("float32")
    angle = quarters * np.pi / 2
    expected = np.rot90(images, quarters, axes=(1, 2))
    for name, params in (
        ("similarity", [1, angle, 0, 0]),
        ("rigid", [angle, 0, 0]),
        ("rotation", [angle]),
    ):
        found = warp(images, [params], name, padding="border", align_corners=align_corners)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # In a volume: about z as in each slice; about x and y in the same sense about those.
    volumes = np.random.default_rng(0).normal(size=(1, 6, 6, 6, 2)).astype("float32")
    for axis, plane in ((0, (1, 2)), (1, (3, 1)), (2, (2, 3))):
        params = np.zeros((1, 6))
        params[0, axis] = angle
        found = warp(volumes, params, "rigid", padding="border", align_corners=align_corners)
        expected = np.rot90(volumes, quarters, axes=plane)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_angle_direction_is_documented():
    text = (stn.transforms.__doc__ + stn.Transform.__doc__).lower()
    assert "counterclockwise" in text, "say which way a positive angle turns the picture"


# --- output size ---------------------------------------------------------------------------------


@conventions
@pytest.mark.parametrize("output_size", [(5, 4), (1, 3), (2, 3, 2)])
def test_output_spans_the_same_region_whatever_its_size(output_size, align_corners):
    # A picture that is linear in the normalized coordinates looks the same at every size.
    n = len(output_size)
    family = FAMILIES["affine", n]
    ramp = np.stack([grids.regular((6, 10, 8)[:n], align_corners)] * 2).astype("float32")
    params = near_identity(family, scale=0.3)
    params[:, :: n + 2] = 0.5  # the diagonal: stays inside the image
    grid = grids.regular(output_size, align_corners)[None].astype("float32")
    expected = numbers(family(params, grid))
    options = {"output_size": output_size, "align_corners": align_corners}
    found = warp(ramp, params, **options)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    first = warp(np.moveaxis(ramp, -1, 1), params, data_format="channels_first", **options)
    np.testing.assert_array_equal(np.moveaxis(first, 1, -1), found)


@pytest.mark.parametrize(
    "output_size", [4, np.int64(4), [4, 4], np.array([4, 4]), (4, np.int32(4))]
)
def test_ways_to_give_an_output_size(output_size):
    expected = warp(IMAGES, identity(FAMILIES["affine", 2]), output_size=(4, 4))
    assert expected.shape == (2, 4, 4, 2)
    found = warp(IMAGES, identity(FAMILIES["affine", 2]), output_size=output_size)
    np.testing.assert_array_equal(found, expected)
    assert freeze_size(output_size) in (4, (4, 4))
    assert check_output_size(output_size, 2) == (4, 4)


def test_output_size_of_a_volume():
    for output_size in (3, (3, 3, 3)):
        found = warp(VOLUMES, identity(FAMILIES["affine", 3]), output_size=output_size)
        assert found.shape == (2, 3, 3, 3, 2)


# --- gradients -----------------------------------------------------------------------------------


def directions(size):
    """Twelve directions among so many parameters, or those themselves if they are not more."""
    if size <= 12:
        return np.eye(size)
    return np.linalg.qr(np.random.default_rng(5).normal(size=(size, 12)))[0].T


@pytest.mark.shows("gradient")
@families
def test_gradients(check_gradient, family):
    rng = np.random.default_rng(4)
    size = {2: (4, 5), 3: (3, 4, 2)}[family.dimensions]
    image = rng.normal(size=(*size, 2))
    params = near_identity(family, 1, scale=2)[0].astype("float64")
    basis = directions(family.size)
    options = {"padding": "zeros", "data_format": "channels_last"}
    options["output_size"] = {2: (3, 4), 3: (2, 2, 2)}[family.dimensions]

    def from_params(values):
        images = np.repeat(image[None], values.shape[0], axis=0)
        values = ops.convert_to_tensor(values)
        rows = ops.sum(ops.expand_dims(values, -1) * ops.convert_to_tensor(basis), axis=1)
        return stn.warp(images, rows + ops.convert_to_tensor(params), family, **options)

    def from_image(values):
        return stn.warp(values, np.repeat(params[None], values.shape[0], axis=0), family, **options)

    check_gradient(from_params, np.zeros(len(basis)))
    check_gradient(from_image, image[..., :1])


@over([FAMILIES[key] for key in [("tps", 2), ("diffeomorphic", 2), ("rigid", 3)]])
def test_gradient_of_the_points(check_gradient, family):
    points = np.random.default_rng(4).uniform(-1, 1, (12 // family.dimensions, family.dimensions))
    params = np.repeat(near_identity(family, 1).astype("float64"), 40, axis=0)
    size = {2: (4, 5), 3: (3, 4, 2)}[family.dimensions]
    check_gradient(lambda values: family(params[: values.shape[0]], values, size=size), points)


# --- extremes ------------------------------------------------------------------------------------

# By how much the weights of an axis can exceed 1 in total, signs aside.
GAIN = {"bicubic": 1.4, "lanczos3": 1.7}


VALUES = [1e6, -1e30, np.inf, -np.inf, np.nan]


def check_extremes(family, **options):
    """All in one batch, with an image that nothing happens to."""
    images = {2: IMAGES, 3: VOLUMES}[family.dimensions][[0] * len(VALUES) + [1]] + 1
    params = identity(family, len(images))
    params[:-1, 0] = VALUES
    gain = GAIN.get(options["sampler"], 1.0) ** family.dimensions
    low, high = 1.5 - 0.5 * gain - 1e-5, 1.5 + 0.5 * gain + 1e-5
    if options["padding"] in ("zeros", "constant", "inward"):
        fill = [0, 0] if options["padding"] == "zeros" else FILL
        low, high = min(low, *(gain * n for n in fill)), max(high, *(gain * n for n in fill))
    found = warp(images, params, family, **options)
    np.testing.assert_array_equal(found[-1], images[-1], err_msg="the other image")
    assert not np.isinf(found).any()
    for value, one in zip(VALUES, found[:-1], strict=True):
        finite = one[np.isfinite(one)]
        if np.isnan(value):
            assert finite.size == 0
        elif np.isfinite(value) and abs(value) < 1e18:
            assert finite.size == one.size
        assert np.all((finite >= low) & (finite <= high))
    if options["padding"] == "zeros" and family.name != "similarity":
        return
    bytes_ = (100 * images).astype("uint8")
    whole = warp(bytes_, params, family, **options)
    np.testing.assert_array_equal(whole[-1], bytes_[-1])
    np.testing.assert_array_equal(whole[np.isnan([*VALUES, 0.0])], 0)


@families
@pytest.mark.parametrize("padding", ["zeros", "reflection"])
def test_extreme_parameters_of_every_family(family, padding):
    check_extremes(family, sampler="bilinear", padding=padding)


@samplers
@paddings
def test_extreme_parameters_of_every_sampler(sampler, padding):
    check_extremes(FAMILIES["similarity", 2], sampler=sampler, padding=padding)


@conventions
@samplers
@pytest.mark.parametrize("padding", ["zeros", "constant", "inward"])
def test_far_outside_is_exactly_the_fill_value(padding, sampler, align_corners):
    expected = np.broadcast_to([0, 0] if padding == "zeros" else FILL, IMAGES.shape)
    for value in (1e6, -1e30, np.inf):
        params = np.array([[value, 0], [value, value]])
        options = {"sampler": sampler, "padding": padding, "align_corners": align_corners}
        found = warp(IMAGES + 1, params, "translation", **options)
        np.testing.assert_array_equal(found, expected)


# --- errors --------------------------------------------------------------------------------------

PARAMS = identity(FAMILIES["affine", 2])


@pytest.mark.parametrize(
    ("images", "params", "wrong", "match"),
    [
        (IMAGES, PARAMS, {"transform": "homography"}, "transform='homography'"),
        (IMAGES, PARAMS, {"transform": None}, "transform=None"),
        (IMAGES, PARAMS, {"transform": ["affine"]}, r"transform=\['affine'\]"),
        (IMAGES, PARAMS, {"transform": "translation"}, r"\(2, 6\)"),
        (IMAGES, PARAMS, {"transform": FAMILIES["affine", 3]}, "3-D"),
        (VOLUMES, PARAMS, {"transform": FAMILIES["affine", 2]}, "2-D"),
        (VOLUMES, PARAMS, {}, r"\(2, 6\)"),
        (VOLUMES, PARAMS, {"transform": "projective"}, "'projective'"),
        (IMAGES, PARAMS[0], {}, r"\(6,\)"),
        (IMAGES, PARAMS[:1], {}, r"\(1, 6\)"),
        (IMAGES, PARAMS.reshape(2, 2, 3), {}, r"\(2, 2, 3\)"),
        (IMAGES[0], PARAMS, {}, r"\(5, 4, 2\)"),
        (IMAGES, PARAMS, {"output_size": 0}, "output_size=0"),
        (IMAGES, PARAMS, {"output_size": -3}, "output_size=-3"),
        (IMAGES, PARAMS, {"output_size": 2.5}, r"output_size=2\.5"),
        (IMAGES, PARAMS, {"output_size": (2.5, 3)}, r"output_size=\(2\.5, 3\)"),
        (IMAGES, PARAMS, {"output_size": (3, 4, 5)}, r"output_size=\(3, 4, 5\)"),
        (VOLUMES, identity(FAMILIES["affine", 3]), {"output_size": (3, 4)}, r"=\(3, 4\)"),
        (IMAGES, PARAMS, {"output_size": (3, None)}, r"output_size=\(3, None\)"),
        (IMAGES, PARAMS, {"output_size": "28"}, "output_size='28'"),
        (IMAGES, PARAMS, {"sampler": "cubic"}, "sampler='cubic'"),
        (IMAGES, PARAMS, {"padding": "wrap"}, "padding='wrap'"),
        (IMAGES, PARAMS, {"fill_value": 1.0}, r"fill_value=1\.0"),
        (IMAGES, PARAMS, {"padding": "constant", "fill_value": (1, 2, 3)}, r"\(1, 2, 3\)"),
        (IMAGES, PARAMS, {"data_format": "NHWC"}, "data_format='NHWC'"),
    ],
)
def test_errors(images, params, wrong, match):
    with pytest.raises(ValueError, match=rf"(?s)^Expected .*Received: .*{match}"):
        stn.warp(images, params, **{"data_format": "channels_last", **wrong})


# --- points and boxes ----------------------------------------------------------------------------

ROOM = {"size": (30, 50), "output_size": (45, 40)}  # neither is square, and they differ
FLAT = [family for family in FAMILIES.values() if family.dimensions == 2]


def to_pixels(points, size, align_corners):
    columns = [grids.to_pixel(points[..., i], n, align_corners) for i, n in enumerate(size[::-1])]
    return np.stack(columns, axis=-1)


@families
@pytest.mark.parametrize("pixels", [False, True])
def test_transform_points_is_the_call(family, pixels):
    n = family.dimensions
    size, output_size = ((30, 50), (45, 40)) if n == 2 else ((6, 8, 10), (7, 12, 5))
    params = near_identity(family)
    points = np.random.default_rng(1).uniform(-0.8, 0.8, (2, 7, n)).astype("float32")
    options = {"size": size, "output_size": output_size, "align_corners": pixels}
    moved = numbers(family(params, points, size=size, align_corners=pixels))
    if pixels:
        moved = to_pixels(moved, size, align_corners=True)
        points = to_pixels(points, output_size, align_corners=True)
    found = stn.transform_points(points, params, family, pixels=pixels, **options)
    np.testing.assert_allclose(numbers(found), moved, rtol=0, atol=1e-4)
    back = stn.transform_points(found, params, family, pixels=pixels, inverse=True, **options)
    np.testing.assert_allclose(numbers(back), points, rtol=0, atol=2e-3 if pixels else 1e-4)


@conventions
@over(FLAT)
def test_a_dot_is_seen_where_its_point_goes(family, align_corners):
    (height, width), (rows, columns) = ROOM["size"], ROOM["output_size"]
    dots = np.array([(31.0, 12.0), (20.0, 19.0)])  # x, y
    y, x = np.mgrid[:height, :width]
    pictures = np.exp(-((x - dots[:, :1, None]) ** 2 + (y - dots[:, 1:, None]) ** 2) / 8)
    params = near_identity(family, scale=0.6)
    seen = warp(
        pictures[..., None].astype("float32"),
        params,
        family,
        output_size=(rows, columns),
        align_corners=align_corners,
    )[..., 0]
    seen = np.where(seen > 0.3 * seen.max(axis=(1, 2), keepdims=True), seen, 0)
    y, x = np.mgrid[:rows, :columns]
    center = (
        np.stack([(seen * x).sum((1, 2)), (seen * y).sum((1, 2))], -1) / seen.sum((1, 2))[:, None]
    )
    options = {"pixels": True, "align_corners": align_corners, **ROOM}
    found = stn.transform_points(dots[:, None], params, family, inverse=True, **options)
    np.testing.assert_allclose(numbers(found)[:, 0], center, rtol=0, atol=0.4)
    back = stn.transform_points(found, params, family, **options)
    np.testing.assert_allclose(numbers(back)[:, 0], dots, rtol=0, atol=0.01)


def frame(picture):
    """The box around what is bright: `(x_min, y_min, x_max, y_max)` of its outermost pixels."""
    rows, columns = (np.flatnonzero((picture > 0.5).any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])


@conventions
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("translation", [0.2, -0.3]),
        ("attention", [0.8, 0.1, -0.2]),
        ("scaling", [0.7, 1.3, -0.1, 0.1]),
        ("affine", [0, 0.9, 0.1, -1.2, 0, 0.2]),  # a quarter turn, roughly
        ("projective", [1, 0, 0.1, 0, 1, 0, 0, 0]),
    ],
)
def test_a_box_lands_on_the_same_content(name, params, align_corners):
    picture = np.zeros((1, 30, 50, 1), "float32")
    picture[0, 9:22, 17:40] = 1
    params = np.array([params], "float32")
    straight = warp(picture, params, name, output_size=(45, 40), align_corners=align_corners)
    options = {"pixels": True, "align_corners": align_corners, **ROOM}
    marked = frame(straight[0, ..., 0])
    found = numbers(stn.transform_boxes(marked[None], params, name, **options))[0]
    np.testing.assert_allclose(found, [17, 9, 39, 21], rtol=0, atol=1)
    there = stn.transform_boxes(np.array([[17, 9, 39, 21]]), params, name, inverse=True, **options)
    np.testing.assert_allclose(numbers(there)[0], marked, rtol=0, atol=1.6)


@over([FAMILIES[key] for key in [("projective", 2), ("tps", 2), ("rigid", 3)]])
def test_a_box_holds_what_was_in_it(family):
    n = family.dimensions
    rng, params = np.random.default_rng(0), near_identity(family, scale=2)
    low = rng.uniform(-0.8, 0, (2, 3, n))
    boxes = np.concatenate([low, low + rng.uniform(0.2, 0.8, (2, 3, n))], axis=-1).astype("float32")
    found = numbers(stn.transform_boxes(boxes, params, family))
    assert found.shape == (2, 3, 2 * n)
    # Random points on the surface: each has one coordinate at an end.
    inner = rng.uniform(0, 1, (2, 3, 4000, n))
    at_an_end = rng.integers(0, n, inner.shape[:-1])[..., None] == np.arange(n)
    inner = np.where(at_an_end, np.round(inner), inner)
    low, high = boxes[..., None, :n], boxes[..., None, n:]
    points = numbers(family(params, (low + (high - low) * inner).astype("float32")))
    assert (points >= found[..., None, :n] - 0.02).all()
    assert (points <= found[..., None, n:] + 0.02).all()
    np.testing.assert_allclose(points.min(axis=-2), found[..., :n], rtol=0, atol=0.1)
    np.testing.assert_allclose(points.max(axis=-2), found[..., n:], rtol=0, atol=0.1)


def test_one_set_of_points_for_all_parameters():
    params = near_identity(FAMILIES["affine", 2])
    points, boxes = np.array([[(0.1, 0.2), (0.3, -0.4)]]), np.array([[-0.5, -0.5, 0.5, 0.5]])
    for inverse in (False, True):
        for function, values in ((stn.transform_points, points), (stn.transform_boxes, boxes)):
            found = numbers(function(values, params, inverse=inverse))
            each = [numbers(function(values, params[i : i + 1], inverse=inverse)) for i in (0, 1)]
            np.testing.assert_allclose(found, np.concatenate(each), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("points", "wrong", "match"),
    [
        (np.zeros((2, 3, 2)), {"transform": "homography"}, "'homography'"),
        (np.zeros((2, 3, 4)), {}, r"\(2, 3, 4\)"),
        (np.zeros(2), {}, r"\(2,\)"),
        (np.zeros((3, 4, 2)), {}, r"\(3, 4, 2\)"),
        (np.zeros((2, 3, 2)), {"pixels": True}, "size=None"),
        (np.zeros((2, 3, 2)), {"pixels": True, "output_size": (3, 4)}, "size=None"),
        (np.zeros((2, 3, 2)), {"size": (3, 4, 5)}, r"size=\(3, 4, 5\)"),
        (np.zeros((2, 3, 2)), {"size": (3, 0)}, r"size=\(3, 0\)"),
        (np.zeros((2, 3, 2)), {"size": (3, 4), "output_size": 0}, "output_size=0"),
    ],
)
def test_errors_of_points(points, wrong, match):
    with pytest.raises(ValueError, match=rf"(?s)^Expected .*Received: .*{match}"):
        stn.transform_points(points, PARAMS, **wrong)


@pytest.mark.parametrize("shape", [(4,), (2, 2), (2, 3, 5)])
def test_errors_of_boxes(shape):
    with pytest.raises(ValueError, match=r"(?s)^Expected boxes .*Received: boxes\.shape="):
        stn.transform_boxes(np.zeros(shape), PARAMS)


# --- compositions --------------------------------------------------------------------------------

CHAINS = [["similarity", "tps"], ["diffeomorphic", "projective", "rotation"], ["flow"]]


@pytest.mark.parametrize("names", CHAINS, ids="+".join)
def test_composition_is_one_after_the_other(names):
    family = stn.Composition(names)
    assert family.name == "+".join(names)
    assert family.size == sum(stn.TRANSFORMS[name].size for name in names)
    assert len(set(family.parameters)) == family.size
    params = near_identity(family, scale=0.3)
    parts, start = [], 0
    for name in names:
        size = stn.TRANSFORMS[name].size
        parts.append(params[:, start : start + size])
        start += size
    points = np.random.default_rng(1).uniform(-0.8, 0.8, (2, 7, 2)).astype("float32")
    expected = points
    for name, part in reversed(list(zip(names, parts, strict=True))):
        expected = numbers(stn.TRANSFORMS[name](part, expected, size=(5, 4)))
    found = numbers(family(params, points, size=(5, 4)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    back = numbers(family.move_back(params, found, size=(5, 4)))
    np.testing.assert_allclose(back, points, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(warp(IMAGES, identity(family), family), IMAGES)


def test_composition_of_images_is_a_warp_of_a_warp():
    waves = np.sin(3 * grids.regular((24, 32)).sum(-1))[None, :, :, None].astype("float32")
    family = stn.Composition(["similarity", "flow"])
    first = np.array([[0.9, 0.3, 0.1, 0]], "float32")
    second = near_identity(FAMILIES["flow", 2], 1, scale=0.5)
    once = warp(waves, np.concatenate([first, second], axis=1), family, padding="border")
    twice = warp(
        warp(waves, first, "similarity", padding="border"), second, "flow", padding="border"
    )
    np.testing.assert_allclose(once[:, 4:-4, 4:-4], twice[:, 4:-4, 4:-4], rtol=0, atol=0.02)
    assert np.abs(once - waves).max() > 0.3


def test_two_affine_maps_are_one():
    family = FAMILIES["affine", 2]
    first, second = near_identity(family), near_identity(family, seed=5)
    together = np.concatenate([first, second], axis=1)
    found = warp(IMAGES, together, stn.Composition(["affine", "affine"]))
    expected = warp(IMAGES, family.compose(first, second))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_composition_of_volumes():
    family = stn.Composition(["rigid", FAMILIES["flow", 3]], dimensions=3)
    np.testing.assert_array_equal(warp(VOLUMES, identity(family), family), VOLUMES)
    assert family.dimensions == 3


def test_bounds_of_a_composition_are_those_of_its_parts():
    family = stn.Composition(["similarity", "tps"])
    assert family.limits == ("scale", "angle", "shift", "displacement")
    bounds = family.check_bounds({"angle": 0.5, "displacement": 0.1})
    found = numbers(family.bound(np.full((1, 36), 1e6), bounds))[0]
    np.testing.assert_allclose(found[:4], [1e6, 0.5, 1e6, 1e6], rtol=1e-4)
    np.testing.assert_allclose(found[4:], 0.2, rtol=1e-4)
    still = family.bound(np.zeros((2, 36)), bounds)
    np.testing.assert_array_equal(numbers(still), identity(family))


@pytest.mark.parametrize(
    "transforms", [[], ["homography"], ["affine", None], [FAMILIES["affine", 3]]]
)
def test_compositions_that_are_none(transforms):
    with pytest.raises(ValueError, match=r"(?s)^Expected .*Received: transform"):
        stn.Composition(transforms)


@pytest.mark.once
def test_families_become_text_and_back():
    inner = stn.Composition(["similarity", stn.Flow((2, 3))])
    for family in (
        *FAMILIES.values(),
        stn.ThinPlateSpline(3, regularization=0.5),
        stn.ThinPlateSpline([(0, 0), (1, 0), (0, 1), (-1, -1)]),
        stn.Flow((2, 3)),
        stn.Diffeomorphic(3, steps=2, dimensions=3),
        stn.Composition([inner, "tps"]),
        stn.Composition(["rigid", stn.Flow(2, dimensions=3)], dimensions=3),
    ):
        again = deserialize(serialize(family))
        again = stn.get_transform(again, dimensions=family.dimensions)
        assert again.parameters == family.parameters
        params = near_identity(family)
        points = np.random.default_rng(1).uniform(-1, 1, (2, 7, family.dimensions))
        points = points.astype("float32")
        found, expected = numbers(again(params, points)), numbers(family(params, points))
        np.testing.assert_array_equal(found, expected)


def test_a_family_that_cannot_be_saved_says_so():
    class Mine(stn.Transform):
        pass

    with pytest.raises(ValueError, match=r"(?s)^Expected .*get_config.*Received: .*mine"):
        serialize(Mine("mine", ["x"], [0]))
