"""The layer: a good citizen of Keras that starts at the identity and learns."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops

import stn
from conftest import pairs
from stn.families import squash
from stn.layers import _temper

BACKEND = keras.backend.backend()
# XLA takes seconds for each small model: TensorFlow has it in the tests of compiled training only.
# On PyTorch Keras compiles with TorchInductor, which takes over a minute for a single step: one
# slow test does that.
JIT = BACKEND == "jax"
XLA = BACKEND != "torch"
IMAGES = np.random.default_rng(0).uniform(0, 1, (5, 12, 10, 2)).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
class FourDimensional(layers.Layer):
    """A localization network of a user, whose output still has the axes of an image."""

    def __init__(self, filters=3, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.convolution = layers.Conv2D(filters, 3, strides=2)

    def build(self, input_shape):
        self.convolution.build(input_shape)
        self.built = True

    def call(self, inputs):
        return self.convolution(inputs)

    def compute_output_shape(self, input_shape):
        return self.convolution.compute_output_shape(input_shape)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


def sequential():
    return keras.Sequential([layers.Flatten(), layers.Dense(4, activation="relu")])


def functional():
    inputs = keras.Input((12, 10, 2))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.Concatenate()([x, layers.Flatten()(inputs)]))


LOCALIZATIONS = {
    "cnn": lambda: "cnn",
    "mlp": lambda: "mlp",
    "default": lambda: None,
    "sequential": sequential,
    "functional": functional,
    "layer": FourDimensional,
}


def transformer(transform="affine", localization="sequential", **options):
    options = {"data_format": "channels_last", **options}
    return stn.SpatialTransformer(transform, localization=LOCALIZATIONS[localization](), **options)


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def shake(layer, spread=0.3):
    """Move the parameters of a layer, or of the layers of a model, off the identity."""
    rng = np.random.default_rng(1)
    for weight in layer.trainable_weights:
        if weight.path.endswith("head/bias"):
            weight.assign(rng.normal(scale=spread, size=weight.shape))
        elif weight.path.endswith("head/kernel"):
            weight.assign(rng.normal(scale=0.05, size=weight.shape))


# --- the start -----------------------------------------------------------------------------------


@pairs(("localization", "transform"), list(LOCALIZATIONS), list(stn.TRANSFORMS), everywhere=["mlp"])
def test_starts_at_the_identity(transform, localization):
    layer = transformer(transform, localization)
    np.testing.assert_array_equal(numpy(layer(IMAGES)), IMAGES)
    assert len(layer.trainable_weights) >= 4
    assert len({weight.path for weight in layer.weights}) == len(layer.weights)


@pytest.mark.once
@pytest.mark.parametrize("localization", ["cnn", "mlp", "layer"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 1), (33, 5, 3)])
def test_starts_at_the_identity_at_every_size(shape, localization):
    if localization == "layer" and min(shape[:2]) < 3:
        with pytest.raises(ValueError, match=r"(?s)^Expected .*Received: input_shape="):
            transformer(localization=localization)(np.zeros((2, *shape), "float32"))
        return
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    for padding, align_corners in (("zeros", False), ("reflection", True)):
        layer = transformer(localization=localization, padding=padding, align_corners=align_corners)
        np.testing.assert_array_equal(numpy(layer(images)), images)


def test_named_localizations_see_a_small_copy_of_a_large_image():
    for localization in ("cnn", "mlp"):
        layer = transformer(localization=localization)
        layer.build((None, 200, 300, 3))
        assert layer.count_params() < 200_000


@pairs(("data_format", "output_size"), ["channels_last", "channels_first"], [None, (6, 15), 6])
def test_output_is_what_warp_gives(output_size, data_format):
    images = IMAGES if data_format == "channels_last" else IMAGES.transpose(0, 3, 1, 2)
    options = {
        "output_size": output_size,
        "sampler": "bilinear",
        "padding": "constant",
        "fill_value": 0.5,
        "align_corners": True,
        "data_format": data_format,
    }
    layer = transformer("similarity", "cnn", return_params=True, **options)
    layer.build(images.shape)
    shake(layer)
    outputs, params, grid = (numpy(x) for x in layer(images))
    assert [x.shape for x in (outputs, params, grid)] == [
        tuple(shape) for shape in layer.compute_output_shape(images.shape)
    ]
    assert np.abs(params - layer.transform.identity).max() > 0.1
    np.testing.assert_allclose(params, numpy(layer.localize(images)), rtol=0, atol=1e-6)
    expected = numpy(stn.warp(images, params, "similarity", **options))
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)
    del options["output_size"]
    expected = numpy(stn.sample(images, grid, **options))
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-4)

    layer.return_params = False
    np.testing.assert_array_equal(numpy(layer(images)), outputs)
    assert tuple(layer.compute_output_shape((None, *images.shape[1:]))) == (
        None,
        *outputs.shape[1:],
    )


# --- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("localization", LOCALIZATIONS)
def test_config_round_trip(localization):
    options = {
        "output_size": (6, 7),
        "sampler": "nearest",
        "padding": "constant",
        "fill_value": 0.5,
        "align_corners": True,
        "data_format": "channels_first",
        "return_params": True,
        "identity_penalty": 0.5,
        "frame_penalty": 0.25,
        "initialization": "tiles",
        "gradient_factor": 0.1,
        "gradient_clip": 2.0,
        "bounds": {"scale": (0.5, 2.0)},
        "heads": 2,
        "iterations": 2,
        "localization_size": (8, 9),
        "name": "straighten",
        "dtype": "mixed_bfloat16",
        "trainable": False,
    }
    layer = transformer("attention", localization, **options)
    config = layer.get_config()
    again = stn.SpatialTransformer.from_config(config)
    found = again.get_config()
    if localization == "functional":  # Keras renames what is inside
        assert found.pop("localization")["class_name"] == "Functional"
        assert config.pop("localization")["class_name"] == "Functional"
    assert found == config
    for name, value in options.items():
        if name != "dtype":
            assert getattr(again, name) == value, name
    assert again.dtype_policy.name == "mixed_bfloat16"
    assert again.transform is layer.transform


def save_and_load(model, path):
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras", safe_mode=True)


@pytest.mark.parametrize("localization", LOCALIZATIONS)
def test_saved_model_gives_the_same(localization, tmp_path):
    inputs = keras.Input((12, 10, 2))
    model = keras.Model(inputs, transformer(localization=localization)(inputs))
    shake(model)
    before = model.predict(IMAGES, verbose=0)
    assert np.abs(before - IMAGES).max() > 0.1
    again = save_and_load(model, tmp_path)
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), before)


def test_saved_model_with_several_transformers(tmp_path):
    inputs = keras.Input((12, 10, 2))
    x = transformer("similarity", "layer", name="first")(inputs)
    x = layers.Conv2D(8, 3, padding="same")(x)
    x, params, grid = transformer(
        "attention", "sequential", output_size=(5, 4), return_params=True, name="second"
    )(x)
    # Channels first, on feature maps of 8 channels.
    x = layers.Permute((3, 1, 2))(x)
    x = transformer("affine", "cnn", data_format="channels_first", name="third")(x)
    model = keras.Model(inputs, [x, params, grid])
    assert [tuple(output.shape) for output in model.outputs] == [
        (None, 8, 5, 4),
        (None, 3),
        (None, 5, 4, 2),
    ]
    shake(model)
    before = model.predict(IMAGES, verbose=0)
    after = save_and_load(model, tmp_path).predict(IMAGES, verbose=0)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    model.load_weights(tmp_path / "model.keras")


@pytest.mark.parametrize(
    "family",
    [
        stn.ThinPlateSpline(3, regularization=0.1),
        stn.ThinPlateSpline([[-1, -1], [1, -1], [0, 1], [0.2, 0.1]]),
        stn.Flow((3, 5)),
        stn.Diffeomorphic(3, steps=2),
        stn.Composition(["similarity", stn.ThinPlateSpline(2)]),
    ],
    ids=lambda family: family.name,
)
def test_saved_model_with_a_family_of_its_own(family, tmp_path):
    inputs = keras.Input((12, 10, 2))
    model = keras.Model(inputs, transformer(family, "mlp")(inputs))
    shake(model, spread=0.1)
    before = model.predict(IMAGES, verbose=0)
    assert np.abs(before - IMAGES).max() > 0.1
    again = save_and_load(model, tmp_path)
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), before)


def test_a_family_that_cannot_be_saved():
    class Shift(stn.Transform):
        def __init__(self):
            super().__init__("shift", ("x",), (0,))

        def move(self, params, points, size, align_corners):
            return points + ops.reshape(params[:, 0], (-1,) + (1,) * (len(points.shape) - 1))

    layer = transformer(Shift(), "mlp")
    np.testing.assert_array_equal(numpy(layer(IMAGES)), IMAGES)
    with pytest.raises(ValueError, match=r"(?s)^Expected .*get_config.*Received: .*'shift'"):
        layer.get_config()


# --- bounds, heads, iterations -------------------------------------------------------------------


def test_bounds_hold_and_the_start_is_the_identity():
    bounds = {"scale": 1.5, "angle": 0.3, "shear": 0.1, "shift": (-0.1, 0.2)}
    layer = transformer("affine", "mlp", bounds=bounds, return_params=True)
    np.testing.assert_array_equal(numpy(layer(IMAGES)[0]), IMAGES)
    shake(layer, spread=1e4)
    _, params, _ = layer(IMAGES)
    matrix = numpy(params).astype("float64").reshape(-1, 2, 3)
    assert matrix[:, :, 2].min() > -0.2001
    assert matrix[:, :, 2].max() < 0.4001
    extent = np.array([10, 12]) / 2  # in pixels the first column is turned and scaled, no more
    column = matrix[:, :, 0] * extent / extent[0]
    assert np.abs(np.arctan2(column[:, 1], column[:, 0])).max() < 0.3001
    scale = np.hypot(*column.T)
    assert scale.min() > 1 / 1.5001
    assert scale.max() < 1.5001


def test_heads_are_independent_and_have_their_own_size():
    sizes = [(4, 5), None, 3]
    layer = transformer("attention", "mlp", heads=3, output_size=sizes, return_params=True)
    layer.build(IMAGES.shape)
    shake(layer)
    results = layer(IMAGES)
    assert [tuple(r[0].shape) for r in results] == [(5, 4, 5, 2), (5, 12, 10, 2), (5, 3, 3, 2)]
    expected = [[tuple(x.shape) for x in result] for result in results]
    assert [list(shapes) for shapes in layer.compute_output_shape(IMAGES.shape)] == expected
    assert len({numpy(params).tobytes() for _, params, _ in results}) == 3
    for (images, params, _), size in zip(results, sizes, strict=True):
        again = stn.warp(IMAGES, params, "attention", output_size=size, data_format="channels_last")
        np.testing.assert_allclose(numpy(images), numpy(again), rtol=0, atol=1e-5)
    config = layer.get_config()
    assert stn.SpatialTransformer.from_config(config).get_config() == config


def test_a_model_of_two_heads_learns_and_loads(tmp_path):
    inputs = keras.Input((12, 10, 2))
    parts = transformer("attention", "cnn", heads=2, output_size=6)(inputs)
    x = layers.Concatenate()([layers.Flatten()(part) for part in parts])
    model = keras.Model(inputs, layers.Dense(3)(x))
    train_twice(model)
    before = model.predict(IMAGES, verbose=0)
    again = save_and_load(model, tmp_path)
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), before)


@pytest.mark.parametrize(
    "options",
    [
        *(pytest.param(o, marks=pytest.mark.once) for o in ({}, {"localization_size": 6})),
        {"heads": 2},
    ],
)
def test_iterations_look_again_and_compose(options):
    family, options = stn.get_transform("similarity"), {"return_params": True, **options}
    once = transformer("similarity", "mlp", **options)
    twice = transformer("similarity", once.localization or "mlp", iterations=2, **options)
    for layer in (once, twice):
        layer.build(IMAGES.shape)
    shake(once)
    twice.set_weights(once.get_weights())
    first, second = once(IMAGES), twice(IMAGES)
    for i, (start, found) in enumerate(
        zip(*((first, second) if once.heads > 1 else ([first], [second])), strict=True)
    ):
        # The network looks at what it has straightened so far, whatever that looks like.
        change = once(start[0])
        change = (change[i] if once.heads > 1 else change)[1]
        expected = family.compose(start[1], change, size=(12, 10))
        tolerance = 0.05 if "localization_size" in options else 1e-5  # shrunk before, or after
        np.testing.assert_allclose(numpy(found[1]), numpy(expected), rtol=0, atol=tolerance)


def test_iterations_are_trained():
    train_twice(
        keras.Sequential(
            [
                keras.Input((12, 10, 2)),
                transformer("similarity", "mlp", iterations=3, localization_size=6),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
    )


def test_localization_sees_a_shrunk_copy_and_the_output_stays_sharp():
    layer = transformer("affine", "sequential", localization_size=(3, 4))
    np.testing.assert_array_equal(numpy(layer(IMAGES)), IMAGES)
    assert tuple(layer.localization.input_shape[1:]) == (3, 4, 2)
    first = transformer("affine", "cnn", localization_size=6, data_format="channels_first")
    np.testing.assert_array_equal(
        numpy(first(IMAGES.transpose(0, 3, 1, 2))), IMAGES.transpose(0, 3, 1, 2)
    )


@pairs(
    ("data_format", "transform"), ["channels_last", "channels_first"], ["rigid", "flow", "affine"]
)
def test_volumes(transform, data_format):
    volumes = np.random.default_rng(0).normal(size=(2, 4, 6, 5, 1)).astype("float32")
    if data_format == "channels_first":
        volumes = np.moveaxis(volumes, -1, 1)
    localization = "cnn" if data_format == "channels_last" else "mlp"
    layer = transformer(transform, localization, data_format=data_format, return_params=True)
    outputs, params, grid = layer(volumes)
    np.testing.assert_array_equal(numpy(outputs), volumes)
    assert layer.transform is stn.get_transform(transform, dimensions=3)
    assert params.shape == (2, layer.transform.size)
    assert tuple(grid.shape) == (2, 4, 6, 5, 3)
    config = layer.get_config()
    again = stn.SpatialTransformer.from_config(config)
    again.build(volumes.shape)
    assert again.get_config() == config


def test_a_volume_model_learns_and_loads(tmp_path):
    volumes = np.random.default_rng(0).normal(size=(5, 4, 6, 5, 1)).astype("float32")
    inputs = keras.Input((4, 6, 5, 1))
    x = transformer("rigid", "cnn", output_size=(4, 3, 3))(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=JIT)
    losses = [float(model.train_on_batch(volumes, np.ones((5, 3)))) for _ in range(3)]
    assert losses[2] < losses[0]
    before = model.predict(volumes, verbose=0)
    again = save_and_load(model, tmp_path)
    np.testing.assert_array_equal(again.predict(volumes, verbose=0), before)


@pytest.mark.parametrize("heads", [1, 2])
def test_probe_shows_what_the_layer_does(heads):
    inputs = keras.Input((12, 10, 2))
    x = layers.Rescaling(0.5)(inputs)
    x = transformer("similarity", "mlp", heads=heads, output_size=6, name="straighten")(x)
    model = keras.Model(inputs, x)
    shake(model)
    seen = stn.probe(model, "straighten").predict(IMAGES, verbose=0)
    straight = model.predict(IMAGES, verbose=0)
    for i in range(heads):
        images, params, grid, inverse = (
            seen[key] if heads == 1 else seen[key][i]
            for key in ("images", "params", "grid", "inverse")
        )
        np.testing.assert_allclose(
            images, straight if heads == 1 else straight[i], rtol=0, atol=1e-6
        )
        assert params.shape == (5, 4)
        assert grid.shape == (5, 6, 6, 2)
        assert inverse.shape == (5, 12, 10, 2)
        # From the output to the input, and back.
        there = stn.transform_points(inverse, params, "similarity", size=(12, 10))
        expected = np.broadcast_to(stn.grids.regular((12, 10)), inverse.shape)
        np.testing.assert_allclose(numpy(there), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"(?s)^Expected .*Received: .*Rescaling"):
        stn.probe(model, model.layers[1].name)


def test_probe_of_a_sequential_model():
    model = keras.Sequential(
        [keras.Input((12, 10, 2)), transformer("affine", "mlp", name="stn"), layers.Flatten()]
    )
    shake(model)
    seen = numpy(stn.probe(model)(IMAGES)["images"])
    np.testing.assert_allclose(seen.reshape(5, -1), numpy(model(IMAGES)), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"a layer 'none', functional or sequential and built"):
        stn.probe(model, "none")


def test_probe_follows_the_model_that_it_is_given():
    layer = transformer("affine", "mlp", name="stn")
    first, second = keras.Input((12, 10, 2)), keras.Input((12, 10, 2))
    keras.Model(first, layer(first))
    other = keras.Model(second, layer(layers.Rescaling(0.5)(second)))
    around = keras.Input((12, 10, 2))
    outer = keras.Model(around, layers.Flatten()(other(layers.Rescaling(4.0)(around))))
    for model, factor in ((other, 0.5), (outer, 2.0)):
        seen = numpy(stn.probe(model)(IMAGES)["images"])
        np.testing.assert_allclose(seen, factor * IMAGES, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"calls the layer 'stn' once\. Received: 2 calls"):
        stn.probe(keras.Model(first, layer(layer(first))))


class OnlyCall(layers.Layer):
    """A localization network that is a `call` and nothing else."""

    def __init__(self):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(8)

    def call(self, inputs):
        return self.dense(self.flatten(inputs))


class OnlyCallModel(keras.Model):
    """The same as a model."""

    def __init__(self):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(8)

    def call(self, inputs):
        return self.dense(self.flatten(inputs))


class Mean(layers.Layer):
    """One that builds itself, but says nothing of its output."""

    def build(self, input_shape):
        self.matrix = self.add_weight(shape=(input_shape[-1], 4))
        self.built = True

    def call(self, inputs):
        return ops.matmul(ops.mean(inputs, axis=(1, 2)), self.matrix)


@pytest.mark.parametrize(("kind", "weights"), [(OnlyCall, 4), (OnlyCallModel, 4), (Mean, 3)])
@pytest.mark.parametrize("built", [False, True])
def test_a_localization_network_need_not_say_its_shape(kind, weights, built):
    network = kind()
    if built:
        network(IMAGES)
    layer = stn.SpatialTransformer(localization=network, data_format="channels_last")
    np.testing.assert_allclose(numpy(layer(IMAGES)), IMAGES, rtol=0, atol=1e-6)
    assert len(layer.trainable_weights) == weights


def test_a_localization_network_has_one_output():
    inputs = keras.Input((12, 10, 2))
    features = layers.Flatten()(inputs)
    with pytest.raises(ValueError, match=r"not one tensor \(batch, features\) of known size"):
        stn.SpatialTransformer(localization=keras.Model(inputs, [features] * 2))(IMAGES)


@pytest.mark.parametrize("heads", [1, 2])
def test_parameters_and_grid_are_float32_symbolically_too(heads):
    layer = transformer("affine", "mlp", heads=heads, return_params=True, dtype="mixed_bfloat16")
    symbolic = layer(keras.Input((12, 10, 2), 5))
    for seen in (symbolic, layer(IMAGES)):
        for one in seen if heads > 1 else [seen]:
            kinds = [keras.backend.standardize_dtype(tensor.dtype) for tensor in one]
            assert kinds == ["bfloat16", "float32", "float32"]


def test_shape_of_volumes_is_known_before_the_layer_is_built():
    layer = transformer("affine", "mlp", return_params=True)
    _, params, grid = layer.compute_output_shape((None, 4, 5, 6, 1))
    assert params == (None, 12)
    assert grid == (None, 4, 5, 6, 3)


def test_clipping_in_float16_warns_of_the_scaled_loss():
    layer = transformer("affine", "mlp", gradient_clip=1.0, dtype="mixed_float16")
    with pytest.warns(UserWarning, match="prefer mixed_bfloat16"):
        layer.build((None, 12, 10, 2))


# --- ways to use it ------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.straighten = transformer("similarity", "mlp")
        self.flatten = layers.Flatten()
        self.classify = layers.Dense(3)

    def call(self, inputs, training=None):
        return self.classify(self.flatten(self.straighten(inputs, training=training)))


def sequential_model(**options):
    return keras.Sequential(
        [
            keras.Input((12, 10, 2)),
            transformer("similarity", "mlp", **options),
            layers.Flatten(dtype=options.get("dtype")),
            layers.Dense(3, dtype="float32"),
        ]
    )


def functional_model(**options):
    inputs = keras.Input((12, 10, 2))
    x = transformer("affine", "cnn", **options)(inputs)
    return keras.Model(inputs, layers.Dense(3, dtype="float32")(layers.Flatten()(x)))


MODELS = {"sequential": sequential_model, "functional": functional_model, "subclassed": Subclassed}


def train_twice(model, jit_compile=JIT):
    """Two steps: the first moves only the head of the transformer, whose weights were zero."""
    model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=jit_compile)
    targets = np.random.default_rng(2).normal(size=(5, 3)).astype("float32")
    model(IMAGES)
    before = [numpy(weight) for weight in model.trainable_weights]
    losses = [float(np.ravel(model.train_on_batch(IMAGES, targets))[0]) for _ in range(2)]
    assert np.isfinite(losses).all()
    assert losses[1] < losses[0]
    for old, weight in zip(before, model.trainable_weights, strict=True):
        new = numpy(weight)
        assert np.isfinite(new).all(), weight.path
        assert np.abs(new - old).max() > 0, f"no gradient reached {weight.path}"


def frozen(how):
    """A model whose transformer is frozen in one of the ways there are."""
    flag = {"trainable": False} if how == "keyword" else {}
    localization = sequential() if how == "own" else "mlp"
    layer = stn.SpatialTransformer("affine", localization=localization, name="stn", **flag)
    if how in ("before", "own"):
        layer.trainable = False
    inputs = keras.Input(IMAGES.shape[1:])
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layer(inputs))))
    if how in ("after", "loaded", "cloned"):
        layer.trainable = False
    return keras.models.clone_model(model) if how == "cloned" else model


@pytest.mark.parametrize("how", ["keyword", "before", "own", "after", "loaded", "cloned"])
def test_frozen_stays_frozen(how, tmp_path):
    model = frozen(how)
    if how == "loaded":
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    layer = model.get_layer("stn")
    assert [layer.trainable_weights, len(model.trainable_weights)] == [[], 2]
    assert not any(weight.trainable for weight in layer.weights)
    layer.trainable = True
    assert len(model.trainable_weights) == 2 + len(layer.weights) >= 6


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch has it")
@pytest.mark.parametrize("family", ["affine", "projective", "tps", "flow"])
def test_autocast_does_not_round_where_pixels_lie(family):
    import torch

    layer = stn.SpatialTransformer(family, localization="mlp", return_params=True)
    layer.build(IMAGES.shape)
    layer.head.set_weights(
        [0.1 * np.random.default_rng(0).normal(size=w.shape) for w in layer.head.weights]
    )
    ramp = np.tile(np.arange(200, dtype="float32")[None, None, :, None], (1, 8, 1, 1))
    params = ops.convert_to_numpy(layer(IMAGES)[1])[:1]
    expected = stn.warp(ramp, params, family, padding="border")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = stn.warp(ramp, params, family, padding="border")
        _, rounded, grid = layer(IMAGES)
    np.testing.assert_allclose(numpy(found), numpy(expected), atol=1e-3)
    assert rounded.dtype == grid.dtype == torch.float32


@pytest.mark.parametrize("kind", MODELS)
def test_compiled_training_reaches_every_weight(kind):
    train_twice(MODELS[kind](), jit_compile=XLA)


@pytest.mark.parametrize(
    "padding",
    ["reflection", *(pytest.param(p, marks=pytest.mark.slow) for p in ("border", "constant"))],
)
def test_compiled_training_in_every_padding(padding):
    train_twice(sequential_model(padding=padding), jit_compile=XLA)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="the other backends are compiled above")
# PyTorch warns of deprecated parts of itself while it compiles, and that it looks through caches.
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_on_pytorch():
    train_twice(sequential_model(), jit_compile=True)


@pytest.mark.skipif(BACKEND == "jax", reason="the gradient tests run JAX uncompiled already")
def test_training_that_is_not_compiled():
    train_twice(sequential_model(), jit_compile=False)


@pytest.mark.parametrize("kind", MODELS)
def test_batches_of_any_size(kind):
    model = MODELS[kind]()
    whole = model.predict(IMAGES, verbose=0)
    if kind != "subclassed":
        shake(model)
        whole = model.predict(IMAGES, verbose=0)
        assert model.output_shape == (None, 3)
    for n in (1, 3):
        found = model.predict(IMAGES[:n], verbose=0)
        np.testing.assert_allclose(found, whole[:n], rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    layer = transformer("similarity", "cnn", dtype=policy, return_params=True)
    outputs, params, grid = layer(IMAGES)
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in (outputs, params, grid)]
    assert dtypes == [policy.removeprefix("mixed_"), "float32", "float32"]
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    assert layer.localization.layers[-1].compute_dtype == policy.removeprefix("mixed_")
    expected = numpy(ops.cast(IMAGES, policy.removeprefix("mixed_")))
    np.testing.assert_array_equal(numpy(outputs), expected)
    train_twice(sequential_model(dtype=policy))


def test_identity_penalty_is_the_squared_distance_in_training_only():
    layer = transformer("translation", "cnn", return_params=True, identity_penalty=0.5)
    images = np.random.default_rng(0).random((3, 8, 8, 1), dtype="float32")
    layer(images)
    assert layer.losses == []
    shake(layer)
    _, params, _ = layer(images, training=True)
    expected = 0.5 * np.mean(np.sum(np.square(numpy(params)), axis=-1))
    assert expected > 0
    np.testing.assert_allclose([float(numpy(loss)) for loss in layer.losses], [expected], rtol=1e-5)


def test_frame_penalty_is_the_squared_distance_from_the_image_in_training_only():
    layer = transformer("attention", "cnn", return_params=True, frame_penalty=0.5)
    images = np.random.default_rng(0).random((3, 8, 8, 1), dtype="float32")
    layer(images, training=True)
    assert [float(numpy(loss)) for loss in layer.losses] == [0.0]  # all of the identity is inside
    shake(layer, 2.0)
    _, _, grid = layer(images, training=True)
    beyond = np.maximum(np.abs(numpy(grid)) - 1, 0)
    expected = 0.5 * np.mean(np.sum(np.square(beyond), axis=-1))
    assert expected > 0
    np.testing.assert_allclose([float(numpy(loss)) for loss in layer.losses], [expected], rtol=1e-5)
    layer(images)
    assert layer.losses == []


def test_the_frame_penalty_calls_back_what_looks_past_the_image():
    def ends(penalty):
        layer = transformer("translation", "mlp", frame_penalty=penalty, return_params=True)
        inputs = keras.Input((8, 8, 1))
        outputs, _, grid = layer(inputs)
        model = keras.Model(inputs, outputs)
        layer.head.bias.assign([2.5, 0.0])  # nothing of the image is in sight
        model.compile(keras.optimizers.SGD(0.2), "mse", jit_compile=JIT)
        images = np.random.default_rng(0).random((4, 8, 8, 1), dtype="float32")
        for _ in range(40):
            model.train_on_batch(images, images)
        return np.abs(keras.Model(inputs, grid).predict(images, verbose=0)).max()

    assert ends(0.0) > 3
    assert ends(1.0) < 1.7


# --- starting at tiles ---------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["scaling", "affine", "projective"])
def test_heads_start_at_their_tiles(transform):
    heads = stn.SpatialTransformer(transform, heads=6, initialization="tiles", output_size=4)
    images = np.random.default_rng(0).random((2, 8, 12, 3), dtype="float32")
    tiles = heads(images)
    expected = [images[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4, 8)]
    assert len(tiles) == 6
    for tile, part in zip(tiles, expected, strict=True):
        np.testing.assert_allclose(numpy(tile), part, atol=1e-5)


def test_families_that_are_less_free_start_at_the_middle_of_their_tiles():
    def found(transform, heads, shape=(1, 8, 16, 1)):
        layer = stn.SpatialTransformer(
            transform, heads=heads, initialization="tiles", return_params=True
        )
        results = layer(np.zeros(shape)) if heads > 1 else [layer(np.zeros(shape))]
        return [numpy(params)[0].tolist() for _, params, _ in results]

    assert found("attention", 2) == [[0.5, -0.5, 0.0], [0.5, 0.5, 0.0]]
    assert found("similarity", 2) == [[0.5, 0.0, -0.5, 0.0], [0.5, 0.0, 0.5, 0.0]]
    assert found("translation", 2) == [[-0.5, 0.0], [0.5, 0.0]]
    assert found("attention", 1) == [[1.0, 0.0, 0.0]]
    centers = [params[1:] for params in found("attention", 8, (1, 4, 4, 4, 1))]
    assert sorted(centers) == [
        [x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)
    ]


# --- gradients on their way to the localization --------------------------------------------------


def test_the_gradient_factor_scales_what_reaches_the_localization():
    moved = []
    for factor in (1.0, 0.1):
        model = keras.Sequential(
            [keras.Input((12, 10, 2)), transformer(localization="mlp", gradient_factor=factor)]
        )
        model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=JIT)
        model.train_on_batch(IMAGES, IMAGES[:, ::-1])
        moved.append(numpy(model.layers[-1].head.bias) - 0.0)
    assert np.abs(moved[0]).max() > 1e-4
    np.testing.assert_allclose(moved[1], 0.1 * moved[0], rtol=1e-4, atol=1e-8)


def test_the_gradient_of_each_image_and_head_is_clipped_by_itself(gradient):
    batch = 4
    rng = np.random.default_rng(0)
    slope = rng.normal(size=(batch, 2, 3)).astype("float32")
    slope[0, 0] *= 1e30  # whose square is infinite
    slope[1, 1] = 0
    slope[2, 0, 1] = np.nan
    slope[3] *= 0.1

    def loss(offsets):
        tempered = _temper(offsets, heads=2, factor=0.5, longest=1.5)
        return ops.sum(tempered * ops.convert_to_tensor(slope.reshape(batch, 6))) / batch

    found = gradient(loss, np.zeros((batch, 6), "float32")).reshape(batch, 2, 3)
    slope[2, 0] = 0
    wide = slope.astype("float64")
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    expected = 0.5 * wide * np.minimum(1, 1.5 / np.maximum(length, 1e-9)) / batch
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_saturation_is_what_the_bounds_take_away():
    images = np.random.default_rng(0).random((3, 8, 8, 1), dtype="float32")
    layer = transformer("rotation", "cnn", bounds={"angle": 0.5})
    layer(images)
    assert numpy(layer.saturation(images)).tolist() == [[0.0]] * 3  # nothing asked for
    layer.head.bias.assign([2.0])
    expected = 1 - float(numpy(squash(np.float32(2.0), -0.5, 0.5))) / 2.0
    assert expected > 0.7
    np.testing.assert_allclose(numpy(layer.saturation(images)), expected, rtol=1e-5)
    free = transformer("rotation", "cnn")
    free(images)
    free.head.bias.assign([2.0])
    np.testing.assert_allclose(numpy(free.saturation(images)), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("offsets", "bounds", "saturated"),
    [
        ([0.9, 0, 0.5, 0, 0.9, 0.5], {"shift": 0.05}, True),  # whatever is asked of the others
        ([0.9, 0, 0.5, 0, 0.9, 0.5], {"shift": 0.05, "angle": 1.0}, True),
        ([0.9, 0, 0.01, 0, 0.9, 0.01], {"shift": 0.5}, False),
        ([0, 0, 0.9, 0, 0, 0.9], {"scale": [0.5, 2], "angle": 0.1, "shear": 0.1}, False),
        ([0, -3.0, 0, 3.0, 0, 0], {"angle": 0.2}, True),
        ([0, -6.3, 0, 6.3, 0, 0], {"angle": 0.2}, True),  # all around, and a little further
        ([3.0, 0, 0, 0, 3.0, 0], {"scale": 1.2, "shift": 0.5}, True),
    ],
)
def test_one_bound_is_enough_to_be_saturated(offsets, bounds, saturated):
    images = np.zeros((2, 8, 8, 1), "float32")
    layer = transformer("affine", "cnn", bounds=bounds)
    layer(images)
    layer.head.bias.assign(offsets)
    found = numpy(layer.saturation(images))
    assert found.shape == (2, 1) and ((found > 0.5) == saturated).all()
    assert (found <= 1).all() and (saturated or (found < 0.1).all())


def test_numbers_of_numpy_are_numbers():
    layer = stn.SpatialTransformer(
        heads=np.int64(2), identity_penalty=np.float32(0.5), gradient_clip=np.float32(1.0)
    )
    again = stn.SpatialTransformer.from_config(json.loads(json.dumps(layer.get_config())))
    assert (again.heads, again.identity_penalty, again.gradient_clip) == (2, 0.5, 1.0)


def test_integer_images_are_cast():
    layer = transformer()
    images = (255 * IMAGES).astype("uint8")
    outputs = layer(images)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    np.testing.assert_array_equal(numpy(outputs), images)


def test_training_flag_reaches_the_localization():
    layer = stn.SpatialTransformer(
        "translation",
        localization=keras.Sequential([layers.Flatten(), layers.Dropout(0.5, seed=1)]),
        return_params=True,
    )
    layer.build(IMAGES.shape)
    shake(layer)
    quiet = [numpy(layer(IMAGES, training=False)[1]) for _ in range(2)]
    np.testing.assert_array_equal(*quiet)
    assert np.abs(numpy(layer(IMAGES, training=True)[1]) - quiet[0]).max() > 1e-3


@pytest.mark.parametrize(
    "transform", [pytest.param("translation", marks=pytest.mark.slow), "attention"]
)
def test_learns_to_undo_a_shift(transform):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    centers = rng.uniform(4.5, 10.5, (256, 2, 1, 1))

    def blobs(centers):
        distance = (x - centers[:, 0]) ** 2 + (y - centers[:, 1]) ** 2
        return np.exp(-distance / 8)[..., None].astype("float32")

    shifted, centered = blobs(centers), blobs(np.full_like(centers, 7.5))
    model = keras.Sequential(
        [keras.Input((16, 16, 1)), stn.SpatialTransformer(transform, localization="mlp")]
    )
    model.compile(keras.optimizers.Adam(3e-3), "mse", jit_compile=JIT)
    before = model.evaluate(shifted, centered, verbose=0)
    model.fit(shifted, centered, batch_size=64, epochs=30, verbose=0)
    after = model.evaluate(shifted, centered, verbose=0)
    assert after < before / 5, f"the loss went from {before:.5f} to {after:.5f}"


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"transform": "homography"}, "transform='homography'"),
        ({"localization": "resnet"}, "localization='resnet'"),
        ({"localization": 3}, "localization=3"),
        ({"localization": [layers.Flatten]}, "localization="),
        ({"output_size": (0, 3)}, r"output_size=\(0, 3\)"),
        ({"output_size": 1.5}, r"output_size=1\.5"),
        ({"sampler": "cubic"}, "sampler='cubic'"),
        ({"padding": "wrap"}, "padding='wrap'"),
        ({"fill_value": 1.0}, r"fill_value=1\.0"),
        ({"data_format": "NHWC"}, "data_format='NHWC'"),
        ({"fill_value": [1.0, 2.0]}, r"fill_value=\[1\.0, 2\.0\]"),
        ({"padding": "constant", "fill_value": "red"}, "fill_value='red'"),
        ({"bounds": {"angle": 0.5}, "transform": "translation"}, "bounds="),
        ({"bounds": {"scale": (1.2, 2)}}, "bounds="),
        ({"bounds": {"shift": -0.5}}, "bounds="),
        ({"heads": 0}, "heads=0"),
        ({"heads": 3, "output_size": [(2, 2), (3, 3)]}, "output_size="),
        ({"iterations": 1.5}, r"iterations=1\.5"),
        ({"iterations": 2, "transform": "tps"}, "'tps'"),
        ({"localization_size": 0}, "localization_size=0"),
        ({"identity_penalty": -1}, "identity_penalty=-1"),
        ({"frame_penalty": float("nan")}, "frame_penalty=nan"),
        ({"gradient_factor": "0.1"}, r"gradient_factor='0\.1'"),
        ({"gradient_clip": 0}, "gradient_clip=0"),
        ({"gradient_clip": "1"}, "gradient_clip='1'"),
        ({"identity_penalty": "1"}, "identity_penalty='1'"),
        ({"initialization": "random"}, "initialization='random'"),
        ({"initialization": "tiles", "transform": "rotation"}, "initialization='tiles'"),
        ({"initialization": "tiles", "transform": "tps"}, "initialization='tiles'"),
    ],
)
def test_errors_of_the_constructor(wrong, match):
    with pytest.raises(ValueError, match=rf"(?s)^Expected .*Received: .*{match}"):
        stn.SpatialTransformer(**wrong)


@pytest.mark.parametrize(
    "shape",
    [(12, 10), (5, 12, 10), (None, None, 10, 2), (5, 0, 10, 2), (5, 9, 9, None), (5, 9, 9, 0)],
)
def test_errors_of_the_shape(shape):
    with pytest.raises(ValueError, match=r"(?s)^Expected .*Received: "):
        transformer().build(shape)
    with pytest.raises(ValueError, match=r"(?s)^Expected .*Received: "):
        transformer().compute_output_shape(shape)
