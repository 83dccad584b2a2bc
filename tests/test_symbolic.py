"""`warp`, `sample` and `transform_points` in functional models."""

import keras
import numpy as np
import pytest

import stn

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (4, 7, 5, 2)).astype("float32")
LAST = {"data_format": "channels_last"}


def near(family):
    family = stn.get_transform(family)
    return (np.array(family.identity) + RNG.normal(0, 0.2, (4, family.size))).astype("float32")


POINTS = RNG.uniform(-1, 1, (4, 3, 6, 2)).astype("float32")
CALLS = {
    "warp": (stn.warp, IMAGES, near("affine"), LAST),
    "warp to a size": (stn.warp, IMAGES, near("affine"), LAST | {"output_size": (3, 9)}),
    "warp by an object": (
        stn.warp,
        IMAGES,
        near(stn.Composition(["rotation", "scaling"])),
        LAST | {"transform": stn.Composition(["rotation", "scaling"]), "padding": "border"},
    ),
    "warp over colors": (
        stn.warp,
        IMAGES,
        near("similarity"),
        LAST | {"transform": "similarity", "padding": "constant", "fill_value": (0.5, 1.0)},
    ),
    "sample": (stn.sample, IMAGES, POINTS, LAST | {"sampler": "bicubic"}),
    "points": (stn.transform_points, POINTS, near("rotation"), {"transform": "rotation"}),
    "boxes": (stn.transform_boxes, RNG.uniform(-1, 1, (4, 3, 4)), near("affine"), {}),
}


@pytest.mark.parametrize("call", CALLS)
def test_functional_model(call):
    function, *values, options = CALLS[call]
    inputs = [keras.Input(value.shape[1:]) for value in values]
    result = function(*inputs, **options)
    expected = keras.ops.convert_to_numpy(function(*values, **options))
    assert tuple(result.shape) == (None, *expected.shape[1:])
    model = keras.Model(inputs, result)
    np.testing.assert_allclose(model.predict(values, verbose=0), expected, atol=2e-6)


@pytest.mark.parametrize("call", [name for name in CALLS if name != "boxes"])
def test_saved_and_loaded(call, tmp_path):
    function, *values, options = CALLS[call]
    inputs = [keras.Input(value.shape[1:]) for value in values]
    model = keras.Model(inputs, function(*inputs, **options))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[-1].name == model.layers[-1].name
    expected = model.predict(values, verbose=0)
    np.testing.assert_array_equal(again.predict(values, verbose=0), expected)


def test_options_without_their_names_and_tensors_by_theirs():
    images, params = keras.Input((7, 5, 2)), keras.Input((1,))
    named = stn.warp(transform="rotation", params=params, images=images)
    results = stn.warp(images, params, "rotation"), named
    assert [tuple(result.shape) for result in results] == [(None, 7, 5, 2)] * 2


def test_one_tensor_of_numbers():
    """The same crop of every image, as a layer of the model."""
    images = keras.Input((7, 5, 2), batch_size=4)
    params = np.tile(np.array([0.5, 0.0, 0.0], "float32"), (4, 1))
    model = keras.Model(images, stn.warp(images, params, "attention", **LAST))
    expected = keras.ops.convert_to_numpy(stn.warp(IMAGES, params, "attention", **LAST))
    result = model.predict(IMAGES, batch_size=4, verbose=0)
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_data_format_is_that_of_the_day_the_model_is_built(monkeypatch):
    images, params = keras.Input((2, 7, 5)), keras.Input((6,))
    keras.config.set_image_data_format("channels_first")
    try:
        model = keras.Model([images, params], stn.warp(images, params, output_size=3))
    finally:
        keras.config.set_image_data_format("channels_last")
    assert keras.Model.from_config(model.get_config()).output.shape == (None, 2, 3, 3)


def test_parameters_of_a_branch_are_trained():
    """What no layer of ours does: one branch says how the image of another is warped."""
    hints, images = keras.Input((2,)), keras.Input((7, 5, 2))
    shifts = keras.layers.Dense(2, kernel_initializer="zeros", name="shifts")(hints)
    model = keras.Model([hints, images], stn.warp(images, shifts, "translation", **LAST))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    before = RNG.uniform(-0.4, 0.4, (64, 2)).astype("float32")
    coordinates = np.linspace(-1, 1, 5)
    pictures = np.tile(coordinates, (64, 7, 1))[..., None].repeat(2, -1).astype("float32")
    moved = stn.warp(pictures, before, "translation", padding="zeros", **LAST)
    model.fit([before, pictures], np.asarray(moved), epochs=40, batch_size=16, verbose=0)
    kernel = keras.ops.convert_to_numpy(model.get_layer("shifts").kernel)
    assert kernel[0, 0] > 0.3  # the truth is 1


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [((5,), {}, r"^Expected params of shape"), ((6,), {"sampler": "x"}, "^Expected sampler to be")],
)
def test_what_does_not_fit_is_told_at_once(shape, options, message):
    with pytest.raises(ValueError, match=message):
        stn.warp(keras.Input((7, 5, 2)), keras.Input(shape), **options)
