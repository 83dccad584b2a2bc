"""The classifiers."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import stn
from stn import models

# The reference is big; most of what is true of a classifier is tested on the compact one.
# The adder is for pairs of images: tests/test_addition.py.
NAMES = [name for name in models.ARCHITECTURES if name != "adder"]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), "uint8")


def some(values, *quick):
    """Parameters of a test: all but a few are slow, for each builds a model or two."""
    return [pytest.param(v, marks=() if v in quick else pytest.mark.slow) for v in values]


def test_reference_has_the_parameters_of_the_tutorials():
    model = stn.classifier("reference", input_shape=(28, 28, 1), num_classes=62)
    assert model.count_params() == 945_476
    assert model.input_shape == (None, 28, 28, 1)
    assert model.output_shape == (None, 62)


def test_templates_are_all_there_is_behind_the_transformer():
    model = stn.classifier("template", transform="rotation", num_classes=10)
    behind = model.count_params() - model.get_layer(models.TRANSFORMER).count_params()
    assert behind == (28 * 28 + 1) * 10


@pytest.mark.once
@pytest.mark.parametrize("architecture", ["cnn", "fcn", "compact"])
@pytest.mark.parametrize("transform", ["affine", "none"])
@pytest.mark.parametrize("parameters", some([200_000, 800_000], 200_000))
def test_the_classifier_is_as_wide_as_its_parameters_allow(architecture, transform, parameters):
    options = {"input_shape": (42, 42, 1), "output_size": 28, "transform": transform}
    model = stn.classifier(architecture, num_classes=10, parameters=parameters, **options)
    assert abs(model.count_params() / parameters - 1) < 0.01


@pytest.mark.parametrize("architecture", ["cnn", "compact", "fcn"])
def test_a_normalized_localization_outlives_a_step_that_kills_relus(architecture):
    """Where every weight is negative, all that images reach is zero, unless it is normalized."""
    model = stn.classifier(architecture, num_classes=10, input_shape=(28, 28, 1))
    network = model.get_layer(models.TRANSFORMER).localization
    for weight in network.trainable_weights:
        if len(weight.shape) > 1:
            weight.assign(-ops.absolute(weight) - 0.1)
    features = network(ops.convert_to_tensor(IMAGES / np.float32(255)), training=True)
    differences = ops.convert_to_numpy(features).std(axis=0)
    assert (differences > 0.01).any() == (architecture != "fcn")


@pytest.mark.parametrize(
    ("architecture", "parameters", "message"),
    [("cnn", 30_000, "width would vanish"), ("template", 90_000, "can only be as it is")],
)
def test_parameters_that_do_not_do(architecture, parameters, message):
    with pytest.raises(
        ValueError, match=rf"Expected .*Received: .*parameters={parameters} .*{message}"
    ):
        stn.classifier(architecture, num_classes=10, parameters=parameters)


def test_pooling_samples_finer_and_averages():
    model = stn.classifier(pooling=2, num_classes=10, output_size=(14, 10))
    assert model.get_layer("stn").output_size == (28, 20)
    assert model.get_layer("body").input_shape == (None, 14, 10, 1)
    seen = keras.Model(model.input, model.get_layer("pooling").output)
    whole = stn.warp(
        IMAGES / np.float32(255), np.tile(np.eye(2, 3).reshape(6), (3, 1)), output_size=(28, 20)
    )
    expected = ops.convert_to_numpy(whole).reshape(3, 14, 2, 10, 2, 1).mean((2, 4))
    np.testing.assert_allclose(seen.predict(IMAGES, verbose=0), expected, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"Expected pooling to be at least 1\. Received: pooling=0"
    ):
        stn.classifier(pooling=0)


@pytest.mark.parametrize("architecture", NAMES)
@pytest.mark.parametrize("transform", some(["affine", "none"], "affine"))
def test_gives_probabilities_for_bytes_and_floats(architecture, transform):
    model = stn.classifier(architecture, transform=transform, num_classes=11)
    found = model.predict(IMAGES, verbose=0)
    assert found.shape == (3, 11)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-6, "the images make no difference"
    as_floats = model.predict(IMAGES.astype("float32"), verbose=0)
    np.testing.assert_allclose(found, as_floats, rtol=0, atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize("architecture", some(NAMES, "compact", "reference", "fcn"))
def test_without_a_transformer_only_that_is_missing(architecture):
    control = stn.classifier(architecture, transform="none")
    model = stn.classifier(architecture, transform="affine")
    assert models.TRANSFORMER not in [layer.name for layer in control.layers]
    transformer = model.get_layer(models.TRANSFORMER)
    assert control.count_params() == model.count_params() - transformer.count_params()
    # The transformer starts at the identity: with the same weights both say the same.
    control.get_layer("body").set_weights(model.get_layer("body").get_weights())
    control.get_layer("classes").set_weights(model.get_layer("classes").get_weights())
    np.testing.assert_allclose(
        model.predict(IMAGES, verbose=0),
        control.predict(IMAGES, verbose=0),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("transform", ["affine", "none"])
def test_standardized_networks_do_not_see_how_bright_it_is(transform, tmp_path):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 20, 24, 3)).astype("float32")
    dark = 0.5 * images + 10
    options = {"input_shape": (20, 24, 3), "num_classes": 4, "transform": transform}
    if transform != "none":
        options["padding"] = "border"  # zeros would be darker than what is in the dark
    model = stn.classifier(standardize=True, **options)
    if transform != "none":
        kernel = model.get_layer(models.TRANSFORMER).head.kernel
        kernel.assign(rng.normal(0, 0.1, kernel.shape))
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(model.predict(dark, verbose=0), expected, rtol=0, atol=2e-3)
    plain = stn.classifier(**options)
    assert plain.count_params() == model.count_params()
    assert np.abs(plain.predict(dark, verbose=0) - plain.predict(images, verbose=0)).max() > 5e-3
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(again.predict(images, verbose=0), expected)


@pytest.mark.parametrize("transform", stn.TRANSFORMS)
def test_transformer_shows_what_it_does(transform):
    family = stn.get_transform(transform)
    model = stn.classifier(
        transform=transform,
        num_classes=3,
        output_size=(20, 24),
        sampler="nearest",
        padding="border",
        align_corners=True,
    )
    assert transform in model.name
    assert model.name == stn.classifier(transform=family, num_classes=3).name
    layer = model.get_layer(models.TRANSFORMER)
    options = (layer.sampler, layer.padding, layer.align_corners, layer.output_size)
    assert options == ("nearest", "border", True, (20, 24))
    images, params, grid = keras.Model(model.input, layer.output)(IMAGES)
    assert tuple(images.shape) == (3, 20, 24, 1)
    assert tuple(grid.shape) == (3, 20, 24, 2)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(params), np.tile(np.float32(family.identity), (3, 1))
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 17, 3)])
def test_compact_takes_images_of_any_size(shape):
    model = stn.classifier("compact", input_shape=shape, num_classes=2)
    found = model.predict(np.zeros((2, *shape), "uint8"), verbose=0)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (5, 1), (6, 1), (17, 40), (7, 9), (60, 60)])
def test_pooling_halves_until_no_side_is_too_long(shape, tmp_path):
    images = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype("float32") - 9
    model = keras.Sequential([keras.Input((*shape, 3)), models.PoolTo(5)])
    expected = images
    while max(expected.shape[1:3]) > 5:
        odd = [(0, n % 2) for n in expected.shape[1:3]]
        expected = np.pad(expected, [(0, 0), *odd, (0, 0)], constant_values=-np.inf)
        _, rows, columns, _ = expected.shape
        expected = expected.reshape(2, rows // 2, 2, columns // 2, 2, 3).max((2, 4))
    found = model.predict(images, verbose=0)
    np.testing.assert_array_equal(found, expected)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(again.predict(images, verbose=0), expected)


@pytest.mark.parametrize("transform", some(stn.TRANSFORMS, "affine", "tps"))
def test_saved_classifier_gives_the_same(transform, tmp_path):
    model = stn.classifier("compact", num_classes=5, transform=transform)
    kernel = model.get_layer(models.TRANSFORMER).head.kernel
    before = model.predict(IMAGES, verbose=0)
    kernel.assign(np.random.default_rng(0).normal(0, 0.1, kernel.shape))
    expected = model.predict(IMAGES, verbose=0)
    assert np.abs(expected - before).max() > 1e-5
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), expected)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"architecture": "resnet"}, "architecture='resnet'"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"transform": "homography"}, "transform='homography'"),
        ({"transform": None}, "transform=None"),
        ({"sampler": "cubic"}, "sampler='cubic'"),
        ({"padding": "wrap"}, "padding='wrap'"),
        ({"output_size": 0}, "output_size=0"),
        ({"input_shape": (28, 28)}, r"\(28, 28\)"),
        ({"input_shape": (None, 28, 1)}, r"None, 28, 1\)"),
    ],
)
def test_wrong_option_is_named(wrong, match):
    # Not, whatever it is, as images that are too small.
    with pytest.raises(ValueError, match=rf"(?s)^Expected (?!images large).*Received: .*{match}"):
        stn.classifier(**wrong)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"input_shape": (17, 17, 1)}, r"input_shape=\(17, 17, 1\)"),
        ({"input_shape": (17, 40, 1), "transform": "none"}, r"input_shape=\(17, 40, 1\)"),
        ({"output_size": 8}, "output_size=8"),
    ],
)
def test_images_too_small_for_the_reference(wrong, match):
    with pytest.raises(
        ValueError, match=rf"(?s)^Expected images large .*'reference'.*Received: .*{match}"
    ):
        stn.classifier("reference", **wrong)


def test_smallest_images_of_the_reference():
    assert stn.classifier("reference", input_shape=(22, 22, 1)).output_shape == (None, 62)


def test_the_localization_network_of_the_documentation_is_ours():
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    found = {"keras": keras, "stn": stn, "layers": keras.layers, "images": keras.Input((28, 28, 1))}
    exec(page.split("```python\n")[1].split("```")[0], found)
    named = [
        [{**layer.get_config(), "name": None} for layer in network.layers]
        for network in (found["localization"], models._compact_localization())
    ]
    assert named[0] == named[1]


@pytest.mark.parametrize("architecture", ["compact", "fcn"])
def test_the_keras_setting_of_the_data_format_changes_nothing(architecture):
    usual = stn.classifier(architecture, num_classes=5)
    before = keras.config.image_data_format()
    try:
        keras.config.set_image_data_format("channels_first")
        found = stn.classifier(architecture, num_classes=5)
        layer = stn.SpatialTransformer("affine")
        layer.build((None, 3, 28, 20))
    finally:
        keras.config.set_image_data_format(before)
    found.set_weights(usual.get_weights())
    one, other = (ops.convert_to_numpy(model(IMAGES)) for model in (found, usual))
    np.testing.assert_allclose(one, other, atol=1e-6)
    kernels = [w.shape for w in layer.localization.weights if len(w.shape) == 4]
    assert kernels == [(5, 5, 3, 20), (5, 5, 20, 20)]


def test_what_the_architecture_decides_cannot_be_given():
    with pytest.raises(ValueError, match=r"architecture does not decide\. Received: localization"):
        stn.classifier(localization="mlp")
