"""What a run trains: the optimizer treats the transformer as the configuration says."""

import keras
import numpy as np
import pytest

from stn import models
from stn.tool import alarms, learning
from stn.tool.config import Config, UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 255, (16, 14, 14, 1)).astype("uint8")
LABELS = np.arange(16) % 4


def build(background=None, shape=(14, 14, 1), **values):
    keras.utils.set_random_seed(0)
    values = {"model": "template", **values}  # the least to compile
    config = Config(schedule="constant", label_smoothing=0.0, **values)
    return learning.build(config, shape, 4, steps=2, background=background)


def weights(model):
    """The localization's weights, and those of the rest."""
    own = learning.localization_weights(model)
    ids = {id(variable) for variable in own}
    rest = [v for v in model.trainable_variables if id(v) not in ids]
    return [
        np.concatenate([keras.ops.convert_to_numpy(v).ravel() for v in part])
        for part in (own, rest)
    ]


def steps(model, count):
    """How far each step moves the transformer, and the rest."""
    moved = []
    for _ in range(count):
        before = weights(model)
        model.train_on_batch(IMAGES, LABELS)
        after = weights(model)
        moved.append([np.abs(a - b).max() for a, b in zip(after, before, strict=True)])
    return np.array(moved)


def test_the_transformer_learns_at_a_rate_of_its_own():
    usual = steps(build(), 1)[0]
    slow = steps(build(localization_rate=0.1), 1)[0]
    # The first step of Adam is as long as the learning rate.
    np.testing.assert_allclose(usual, [2e-3, 2e-3], rtol=1e-2)
    np.testing.assert_allclose(slow, [2e-4, 2e-3], rtol=1e-2)


def test_the_transformer_is_held_at_the_identity_for_some_epochs():
    moved = steps(build(hold_epochs=2), 6)  # of two steps each
    assert (moved[:4, 0] == 0).all()
    assert (moved[4:, 0] > 1e-4).all()
    assert (moved[:, 1] > 1e-4).all()


def test_heads_may_begin_each_at_its_own_tile():
    config = Config(model="template", heads=4, initialization="tiles", padding="zeros")
    model = learning.build(config, (14, 14, 1), 4, output_size=7, steps=2)
    seen = keras.Model(model.input, [images for images, _, _ in models.looks(model)])
    halves = (slice(0, 7), slice(7, 14))
    tiles = [IMAGES[:, rows, columns] / 255 for rows in halves for columns in halves]
    for found, tile in zip(seen(IMAGES), tiles, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(found), tile, atol=1e-5)
    with pytest.raises(UserError, match="initialization='tiles'"):
        build(transform="rotation", heads=4, initialization="tiles")


def test_held_at_the_identity_the_output_is_the_image():
    model = build(hold_epochs=1)
    model.train_on_batch(IMAGES, LABELS)
    model.train_on_batch(IMAGES, LABELS)
    seen = keras.Model(model.input, model.get_layer("stn").output[0]).predict(IMAGES, verbose=0)
    np.testing.assert_allclose(seen, IMAGES / 255, atol=1e-7)


def test_weights_decay_but_not_biases_and_normalization():
    model = build(weight_decay=100.0)  # a fifth of a weight a step
    kernels = [v for v in model.trainable_variables if v.path.endswith("kernel")]
    others = [v for v in model.trainable_variables if not v.path.endswith("kernel")]
    assert kernels and others
    before = [keras.ops.convert_to_numpy(v) + 0 for v in kernels + others]
    model.train_on_batch(IMAGES, LABELS)
    for i, (variable, old) in enumerate(zip(kernels + others, before, strict=True)):
        kept = 0.8 if i < len(kernels) else 1.0
        new = keras.ops.convert_to_numpy(variable)
        np.testing.assert_allclose(new, kept * old, atol=2.1e-3)


@pytest.mark.parametrize("values", [{"localization_rate": 0.1}, {"hold_epochs": 1}])
def test_weights_decay_at_their_own_rate(values):
    model = build(weight_decay=100.0, **values)
    (own, *_), before = learning.localization_weights(model), weights(model)
    assert own.path.endswith("kernel")
    old = keras.ops.convert_to_numpy(own) + 0
    model.train_on_batch(IMAGES, LABELS)
    kept = 0.98 if "localization_rate" in values else 1.0
    np.testing.assert_allclose(keras.ops.convert_to_numpy(own), kept * old, atol=2.1e-4)
    rest = [v for v in model.trainable_variables if v.path.endswith("kernel")][-1]
    assert not np.array_equal(weights(model)[1], before[1]) and rest.path != own.path


def test_the_size_of_the_gradient_is_what_adam_saw():
    model = build(transform="none")
    bias = model.trainable_variables[-1]
    assert learning.gradient_size(model.optimizer, [bias]) is None  # before the first step
    probabilities = np.asarray(model.predict(IMAGES, verbose=0), "float64")
    model.train_on_batch(IMAGES, LABELS)
    found = learning.gradient_size(model.optimizer, [bias])
    assert found is not None and 0 < found < np.abs(probabilities).max()
    assert learning.gradient_size(model.optimizer, []) is None


def test_a_gradient_that_ends_is_soon_forgotten():
    """Adam's memory of squares would still show it after twenty thousand steps."""
    model = build(transform="none")
    bias = model.trainable_variables[-1]
    model.train_on_batch(IMAGES, LABELS)
    before = learning.gradient_size(model.optimizer, [bias])
    for _ in range(150):
        model.optimizer.apply([0.0 * v for v in model.trainable_variables])
    after = learning.gradient_size(model.optimizer, [bias])
    assert before > 1e-3 and after < alarms.VANISHED


# --- the background ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("background", "padding", "fill"),
    [
        (np.zeros(1, "float32"), "zeros", 0.0),
        (np.full(1, 255, "float32"), "constant", [1.0]),
        (np.array([255, 51, 0], "float32"), "constant", [1.0, 0.2, 0.0]),
        (None, "border", 0.0),
    ],
)
def test_outside_the_image_is_the_background_as_the_model_scales_it(background, padding, fill):
    channels = 1 if background is None else len(background)
    layer = build(background, (14, 14, channels)).get_layer("stn")
    assert layer.padding == padding
    np.testing.assert_allclose(layer.fill_value, fill, rtol=1e-6)


def test_padding_that_was_asked_for_is_kept():
    layer = build(np.full(1, 255, "float32"), padding="zeros").get_layer("stn")
    assert (layer.padding, layer.fill_value) == ("zeros", 0.0)


def test_a_light_image_that_is_moved_leaves_no_dark_edge():
    model = build(np.full(1, 255, "float32"), transform="translation")
    layer = model.get_layer("stn")
    layer.head.bias.assign([0.8, -0.6])
    white = np.full((2, 14, 14, 1), 255, "uint8")
    seen = keras.Model(model.input, layer.output[0]).predict(white, verbose=0)
    np.testing.assert_allclose(seen, 1.0, atol=1e-6)


# --- options that reach the layer ----------------------------------------------------------------


def test_options_reach_the_layer():
    model = build(
        transform="similarity",
        bounds="angle = 0.5, scale = [0.5, 2]",
        iterations=2,
        localization_size=7,
        identity_penalty=0.3,
        frame_penalty=0.1,
        gradient_clip=2.0,
        pooling=2,
    )
    layer = model.get_layer("stn")
    assert layer.bounds == {"angle": (-0.5, 0.5), "scale": (0.5, 2.0)}
    assert (layer.iterations, layer.localization_size) == (2, 7)
    assert (layer.identity_penalty, layer.frame_penalty, layer.gradient_clip) == (0.3, 0.1, 2.0)
    assert layer.output_size == (28, 28)
    assert model.get_layer("pooling").output.shape == (None, 14, 14, 1)


def test_the_penalty_of_the_architecture_is_kept_unless_another_is_asked_for():
    def penalty(**values):
        return build(model="compact", **values).get_layer("stn").identity_penalty

    assert (penalty(), penalty(identity_penalty=0.0)) == (0.02, 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bounds": {"angle": 0.5}, "transform": "translation"}, "bounds="),
        ({"bounds": "angel = 0.5"}, "bounds="),
        ({"iterations": 2, "transform": "tps"}, "iterations=2"),
    ],
)
def test_options_that_do_not_suit_the_family(values, message):
    with pytest.raises(UserError, match=rf"(?s)^Expected .*Received: .*{message}"):
        build(**values)


class Counted(keras.utils.PyDataset):
    """Three batches that know their number."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return (np.full((4, 14, 14, 1), index, "uint8"), np.zeros((4, 2), "float32")), LABELS[:4]


def test_an_epoch_takes_the_batches_in_order_and_does_not_wait_for_what_tunes_its_pipeline():
    inputs = keras.Input((14, 14, 1)), keras.Input((2,))
    numbers = keras.layers.GlobalAveragePooling2D()(inputs[0])
    outputs = keras.layers.Dense(2, kernel_initializer="ones")(numbers)
    model = keras.Model(inputs, keras.layers.Add()([outputs, inputs[1]]))
    seen = []

    def loss(_, found):
        return keras.ops.stop_gradient(found[:, 0]) + 0 * found[:, 1]

    class Watcher(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((batch, float(logs["loss"])))

    model.compile("sgd", loss)
    logs = learning.fit(model, Counted(), Watcher())
    assert seen == [(0, 0.0), (1, 0.5), (2, 1.0)]  # the mean so far
    assert logs["loss"] == [1.0]
    if keras.backend.backend() == "tensorflow":
        pipeline = learning._pipeline(Counted())
        assert len(pipeline) == 3
        assert not pipeline.options().autotune.enabled
