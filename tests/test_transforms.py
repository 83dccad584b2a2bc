"""The families and `warp`: what they mean, and that the identity changes nothing."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import stn
from stn.samplers import PADDINGS, SAMPLERS

families = pytest.mark.parametrize("name", stn.TRANSFORMS)
# One shape in as many tests as will do: JAX compiles anew for each.
IMAGES = np.random.default_rng(0).uniform(0, 1, (2, 5, 6, 3)).astype("float32")

conventions = pytest.mark.parametrize("align_corners", [False, True])


def identity(name, batch=1):
    return np.tile(np.array(stn.TRANSFORMS[name].identity, "float32"), (batch, 1))


def near_identity(name, batch, spread=0.3, seed=0):
    family = stn.TRANSFORMS[name]
    noise = np.random.default_rng(seed).normal(size=(batch, family.size))
    return (np.array(family.identity) + spread * noise).astype("float32")


def warp(images, params, transform="affine", **options):
    result = stn.warp(images, params, transform, **{"data_format": "channels_last", **options})
    return ops.convert_to_numpy(ops.cast(result, "float32"))


def call(name, params, points, **options):
    return ops.convert_to_numpy(stn.TRANSFORMS[name](params, points, **options))


# --- the identity --------------------------------------------------------------------------------


@families
@conventions
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_identity_returns_the_images(name, sampler, align_corners):
    for size in ((1, 1), (1, 7), (7, 1), (28, 28), (31, 20), (224, 300)):
        images = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype("float32")
        if size == (224, 300):
            images = images[:1, ..., :1]
        for padding in PADDINGS:
            found = warp(
                images,
                identity(name, len(images)),
                name,
                sampler=sampler,
                padding=padding,
                fill_value=9.0 if padding == "constant" else 0.0,
                align_corners=align_corners,
            )
            np.testing.assert_array_equal(found, images, err_msg=f"{size}, {padding}")


@families
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32", "float64", "bool"])
def test_identity_keeps_types_in_both_data_formats(name, sampler, dtype, float64):
    values = 255 * IMAGES.astype("float64")
    for data_format, axes in (("channels_last", (0, 1, 2, 3)), ("channels_first", (0, 3, 1, 2))):
        images = ops.cast(values.transpose(axes), dtype)
        found = stn.warp(images, identity(name, 2), name, sampler=sampler, data_format=data_format)
        assert keras.backend.standardize_dtype(found.dtype) == dtype
        as_float = [ops.convert_to_numpy(ops.cast(x, "float64")) for x in (found, images)]
        np.testing.assert_array_equal(*as_float, err_msg=data_format)


@families
def test_identity_parameters_leave_points_alone(name):
    points = np.random.default_rng(0).uniform(-2, 2, (1, 50, 2)).astype("float32")
    for aspect in (1.0, 2.5):
        found = call(name, identity(name, 3), points, aspect=aspect)
        np.testing.assert_array_equal(found, np.tile(points, (3, 1, 1)))


# --- each family ---------------------------------------------------------------------------------


@families
def test_rows_of_the_batch_are_independent(name):
    params = near_identity(name, 2)
    together = warp(IMAGES, params, name)
    for i in range(2):
        others = np.where(np.arange(2) == i, 0, 7).astype("float32")
        alone = warp(IMAGES + others[:, None, None, None], params + others[:, None], name)
        np.testing.assert_array_equal(together[i], alone[i])
        assert np.abs(together[1 - i] - alone[1 - i]).max() > 0.1


@families
@pytest.mark.parametrize("aspect", [1.0, 0.4])
def test_matrix_agrees_with_the_call(name, aspect):
    params = near_identity(name, 5)
    points = np.random.default_rng(1).uniform(-1, 1, (5, 3, 4, 2)).astype("float32")
    matrices = ops.convert_to_numpy(stn.TRANSFORMS[name].matrix(params, aspect=aspect))
    assert matrices.shape == (5, 2, 3)
    homogeneous = np.concatenate([points, np.ones((5, 3, 4, 1))], axis=-1)
    expected = np.einsum("bij,bhwj->bhwi", matrices, homogeneous)
    np.testing.assert_allclose(
        call(name, params, points, aspect=aspect), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("special", "general", "embed"),
    [
        ("translation", "attention", lambda x, y: (1, x, y)),
        ("translation", "similarity", lambda x, y: (1, 0, x, y)),
        ("translation", "affine", lambda x, y: (1, 0, x, 0, 1, y)),
        ("attention", "similarity", lambda scale, x, y: (scale, 0, x, y)),
        ("attention", "affine", lambda scale, x, y: (scale, 0, x, 0, scale, y)),
    ],
)
def test_special_families_are_cases_of_general_ones(special, general, embed):
    params = near_identity(special, 4)
    points = np.random.default_rng(1).uniform(-1, 1, (4, 9, 2)).astype("float32")
    embedded = np.array([embed(*row) for row in params], "float32")
    for aspect in (1.0, 3.0):
        found = call(special, params, points, aspect=aspect)
        expected = call(general, embedded, points, aspect=aspect)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@families
def test_every_family_is_a_case_of_affine(name):
    params = near_identity(name, 2)
    aspect = stn.grids.aspect(IMAGES.shape[1:3], False)
    matrices = ops.convert_to_numpy(stn.TRANSFORMS[name].matrix(params, aspect=aspect))
    np.testing.assert_allclose(
        warp(IMAGES, params, name), warp(IMAGES, matrices.reshape(2, 6)), rtol=0, atol=1e-5
    )


@families
def test_float64_stays(name, float64):
    points = np.random.default_rng(0).uniform(-1, 1, (2, 5, 2))
    params = near_identity(name, 2).astype("float64")
    for p, x in ((params, points), (params.astype("float32"), points), (params, points[:1])):
        found = stn.TRANSFORMS[name](p, x)
        assert keras.backend.standardize_dtype(found.dtype) == "float64"
    found = stn.TRANSFORMS[name](params, points.astype("float32"))
    assert keras.backend.standardize_dtype(found.dtype) == "float64"


@conventions
def test_similarity_does_not_shear_a_non_square_image(align_corners):
    size, scale, angle = (20, 50), 0.7, 0.6
    grid = stn.grids.regular(size, align_corners).astype("float32")[None]
    params = np.array([[scale, angle, 0.1, -0.2]], "float32")
    aspect = stn.grids.aspect(size, align_corners)
    moved = call("similarity", params, grid, aspect=aspect)[0].astype("float64")
    x = stn.grids.to_pixel(moved[..., 0], size[1], align_corners)
    y = stn.grids.to_pixel(moved[..., 1], size[0], align_corners)
    # In pixels, a step right and a step down stay as long and perpendicular as each other.
    right = np.stack([np.diff(x, axis=1), np.diff(y, axis=1)], axis=-1)
    down = np.stack([np.diff(x, axis=0), np.diff(y, axis=0)], axis=-1)
    expected = scale * np.array([np.cos(angle), np.sin(angle)])
    np.testing.assert_allclose(right, np.broadcast_to(expected, right.shape), atol=1e-4)
    expected = scale * np.array([-np.sin(angle), np.cos(angle)])
    np.testing.assert_allclose(down, np.broadcast_to(expected, down.shape), atol=1e-4)


# --- directions ----------------------------------------------------------------------------------


@conventions
def test_positive_translation_shows_what_lies_further_right_and_down(align_corners):
    x = 2 / stn.grids.half_extent(6, align_corners)
    y = 1 / stn.grids.half_extent(5, align_corners)
    params = np.array([[x, y]] * 2)
    found = warp(IMAGES, params, "translation", align_corners=align_corners)
    np.testing.assert_allclose(found[:, :-1, :-2], IMAGES[:, 1:, 2:], rtol=0, atol=1e-5)
    # The last row and column are read where the image ends, which may round to just inside it.
    np.testing.assert_allclose(found[:, -1], 0, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[:, :, -2:], 0, rtol=0, atol=1e-5)


def test_scale_below_one_zooms_in():
    image = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    found = warp(image, np.array([[0.5, 0, 0]]), "attention", output_size=2)
    np.testing.assert_allclose(found, image[:, 1:3, 1:3], rtol=0, atol=1e-5)


@conventions
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_positive_angle_turns_the_picture_counterclockwise(quarters, align_corners):
    images = np.random.default_rng(0).normal(size=(1, 6, 6, 2)).astype("float32")
    params = np.array([[1, quarters * np.pi / 2, 0, 0]])
    found = warp(images, params, "similarity", padding="border", align_corners=align_corners)
    expected = np.rot90(images, quarters, axes=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_angle_direction_is_documented():
    text = (stn.transforms.__doc__ + stn.Transform.__doc__).lower()
    assert "clockwise" in text, "say which way a positive angle turns the picture"


@conventions
def test_inverse_undoes(align_corners):
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (4, 20, 2)).astype("float32")
    params = near_identity("affine", 4, spread=0.2)
    square = np.concatenate([params.reshape(4, 2, 3), np.tile([[[0, 0, 1]]], (4, 1, 1))], axis=1)
    inverse = np.linalg.inv(square)[:, :2].reshape(4, 6).astype("float32")
    there_and_back = call("affine", inverse, call("affine", params, points))
    np.testing.assert_allclose(there_and_back, points, rtol=0, atol=1e-5)


# --- output size ---------------------------------------------------------------------------------


@conventions
@pytest.mark.parametrize("output_size", [(12, 20), (1, 3)])
def test_output_spans_the_same_region_whatever_its_size(output_size, align_corners):
    # A picture that is linear in the normalized coordinates looks the same at every size.
    size = (6, 10)
    ramp = stn.grids.regular(size, align_corners)[None].astype("float32")
    params = near_identity("affine", 1, spread=0.05)
    params[:, [0, 4]] = 0.5  # stays inside the image
    for data_format in ("channels_last", "channels_first"):
        images = ramp if data_format == "channels_last" else ramp.transpose(0, 3, 1, 2)
        found = warp(
            images,
            params,
            output_size=output_size,
            align_corners=align_corners,
            data_format=data_format,
        )
        found = found if data_format == "channels_last" else found.transpose(0, 2, 3, 1)
        grid = stn.grids.regular(output_size, align_corners)[None].astype("float32")
        np.testing.assert_allclose(found, call("affine", params, grid), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "output_size", [4, np.int64(4), [4, 4], np.array([4, 4]), (4, np.int32(4))]
)
def test_ways_to_give_an_output_size(output_size):
    expected = warp(IMAGES, identity("affine", 2), output_size=(4, 4))
    assert expected.shape == (2, 4, 4, 3)
    found = warp(IMAGES, identity("affine", 2), output_size=output_size)
    np.testing.assert_array_equal(found, expected)


# PyTorch warns that one-pixel axes were different before its version 1.3.
@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning")
@conventions
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_affine_agrees_with_torch(sampler, align_corners):
    functional = pytest.importorskip("torch.nn.functional")
    import torch

    sizes = [
        ((1, 1), (1, 1)),
        ((1, 9), (3, 4)),
        ((8, 5), (8, 5)),
        ((8, 5), (1, 6)),
        ((4, 7), (9, 2)),
    ]
    for (size, output_size), padding in itertools.product(sizes, ("zeros", "border", "reflection")):
        images = np.random.default_rng(0).uniform(-1, 1, (8, *size, 3)).astype("float32")
        params = near_identity("affine", 8, spread=0.4, seed=5)
        matrix = torch.tensor(params).reshape(8, 2, 3)
        grid = functional.affine_grid(matrix, (8, 1, *output_size), align_corners)
        expected = functional.grid_sample(
            torch.tensor(images).permute(0, 3, 1, 2), grid, sampler, padding, align_corners
        )
        options = {"output_size": output_size, "sampler": sampler, "padding": padding}
        found = warp(images, params, align_corners=align_corners, **options)
        off = np.abs(found - expected.permute(0, 2, 3, 1).numpy()).max(axis=-1)
        if sampler == "nearest":  # halfway between two pixels the last bit decides
            extents = [stn.grids.half_extent(n, align_corners) for n in (size[1], size[0])]
            pixels = grid.numpy() * extents + (np.array([size[1], size[0]]) - 1) / 2
            tie = (np.abs(pixels - np.floor(pixels) - 0.5) < 1e-4).any(axis=-1)
            assert tie.mean() < 0.5 or 1 in output_size
            off = np.where(tie, 0, off)
        np.testing.assert_allclose(off, 0, rtol=0, atol=1e-5, err_msg=f"{size}, {options}")


# --- gradients -----------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_gradients(check_gradient, name, padding):
    rng = np.random.default_rng(4)
    image = rng.normal(size=(4, 5, 2))
    params = np.array(stn.TRANSFORMS[name].identity) + 0.3 * rng.normal(
        size=stn.TRANSFORMS[name].size
    )
    for align_corners in (False, True):
        options = {
            "padding": padding,
            "align_corners": align_corners,
            "output_size": (3, 4),
            "data_format": "channels_last",
        }

        def from_params(values, options=options):
            images = np.repeat(image[None], values.shape[0], axis=0)
            return stn.warp(images, values, name, **options)

        def from_image(values, options=options):
            return stn.warp(
                values, np.repeat(params[None], values.shape[0], axis=0), name, **options
            )

        check_gradient(from_params, params)
        if padding == "zeros":
            check_gradient(from_image, image)


@families
def test_gradient_of_the_points(check_gradient, name):
    points = np.random.default_rng(4).uniform(-1, 1, (6, 2))
    params = near_identity(name, 1).astype("float64")
    check_gradient(
        lambda values: stn.TRANSFORMS[name](
            np.repeat(params, values.shape[0], axis=0), values, aspect=1.7
        ),
        points,
    )


# --- extremes and errors -------------------------------------------------------------------------


@families
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("value", [1e6, -1e30, np.inf, -np.inf, np.nan])
def test_extreme_parameters(name, padding, value):
    images = IMAGES + 1
    params = identity(name, 2)
    params[0] = value
    for sampler in SAMPLERS:
        options = {"sampler": sampler, "padding": padding}
        if padding == "constant":
            options["fill_value"] = 0.5
        found = warp(images, params, name, **options)
        np.testing.assert_array_equal(found[1], images[1], err_msg="the other image")
        finite = found[0][np.isfinite(found[0])]
        assert not np.isinf(found).any()
        if np.isfinite(value):
            assert finite.size == found[0].size
        if np.isnan(value):
            assert finite.size == 0
        low = {"zeros": 0.0, "constant": 0.5}.get(padding, 1.0)
        assert np.all((finite >= low - 1e-6) & (finite <= 2 + 1e-6))
        whole = warp((100 * images).astype("uint8"), params, name, **options)
        assert whole.min() >= 0
        assert whole.max() <= 200
        if np.isnan(value):
            np.testing.assert_array_equal(whole[0], 0)


@conventions
@pytest.mark.parametrize("value", [1e6, -1e6, 1e30, -1e30, np.inf])
@pytest.mark.parametrize(("padding", "fill"), [("zeros", 0.0), ("constant", 0.1)])
def test_far_outside_is_exactly_the_fill_value(padding, fill, value, align_corners):
    for params in ([value, 0], [0, value], [value, value]):
        for sampler in SAMPLERS:
            found = warp(
                IMAGES + 1,
                np.array([params, params]),
                "translation",
                sampler=sampler,
                padding=padding,
                fill_value=fill,
                align_corners=align_corners,
            )
            np.testing.assert_array_equal(found, np.float32(fill))


PARAMS = identity("affine", 2)


@pytest.mark.parametrize(
    ("images", "params", "wrong", "match"),
    [
        (IMAGES, PARAMS, {"transform": "homography"}, "transform='homography'"),
        (IMAGES, PARAMS, {"transform": None}, "transform=None"),
        (IMAGES, PARAMS, {"transform": ["affine"]}, r"transform=\['affine'\]"),
        (IMAGES, PARAMS, {"transform": "translation"}, r"\(2, 6\)"),
        (IMAGES, PARAMS[0], {}, r"\(6,\)"),
        (IMAGES, PARAMS[:1], {}, r"\(1, 6\)"),
        (IMAGES, PARAMS.reshape(2, 2, 3), {}, r"\(2, 2, 3\)"),
        (IMAGES[0], PARAMS, {}, r"\(5, 6, 3\)"),
        (IMAGES, PARAMS, {"output_size": 0}, "output_size=0"),
        (IMAGES, PARAMS, {"output_size": -3}, "output_size=-3"),
        (IMAGES, PARAMS, {"output_size": 2.5}, r"output_size=2\.5"),
        (IMAGES, PARAMS, {"output_size": (2.5, 3)}, r"output_size=\(2\.5, 3\)"),
        (IMAGES, PARAMS, {"output_size": (3, 4, 5)}, r"output_size=\(3, 4, 5\)"),
        (IMAGES, PARAMS, {"output_size": (3, None)}, r"output_size=\(3, None\)"),
        (IMAGES, PARAMS, {"output_size": "28"}, "output_size='28'"),
        (IMAGES, PARAMS, {"sampler": "cubic"}, "sampler='cubic'"),
        (IMAGES, PARAMS, {"padding": "wrap"}, "padding='wrap'"),
        (IMAGES, PARAMS, {"fill_value": 1.0}, r"fill_value=1\.0"),
        (IMAGES, PARAMS, {"data_format": "NHWC"}, "data_format='NHWC'"),
    ],
)
def test_errors(images, params, wrong, match):
    with pytest.raises(ValueError, match=rf"(?s)^Expected .*Received: .*{match}"):
        stn.warp(images, params, **{"data_format": "channels_last", **wrong})


@pytest.mark.parametrize(
    ("params", "points", "match"),
    [
        (np.zeros((2, 6)), np.zeros((2, 3)), r"2, 3"),
        (np.zeros((2, 6)), np.zeros(2), r"points\.shape"),
        (np.zeros((2, 5)), np.zeros((2, 2)), r"\(2, 5\)"),
        (np.zeros((2, 6)), np.zeros((3, 4, 2)), r"3, 4, 2"),
    ],
)
def test_errors_of_a_call(params, points, match):
    with pytest.raises(ValueError, match=rf"(?s)^Expected .*Received: .*{match}"):
        stn.get_transform("affine")(params, points)
    if params.shape[1] != 6:
        with pytest.raises(ValueError, match=rf"(?s)^Expected .*Received: .*{match}"):
            stn.get_transform("affine").matrix(params)


def test_table_is_consistent():
    for name, family in stn.TRANSFORMS.items():
        assert stn.get_transform(name) is family is stn.get_transform(family)
        assert family.name == name
        assert len(family.parameters) == len(family.identity) == family.size
        assert name in repr(family)
